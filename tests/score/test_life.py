"""The life of a run: killed, stopped, out of time, without its Ray, it goes on each time and ends whole."""

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from armo_ray.verify.output import verify_output
from jobs.measure.scale import descendants
from tests.support.local import score_locally, scores_of
from tests.support.runs import (
    commits_of,
    finish,
    kill,
    kill_run,
    program_of,
    read_until,
    start,
    wait_for_commits,
    wait_for_orphans,
    write_user_modules,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

UNIT = ("--unit-rows", "4")


class Life:
    """Runs into one output, one after the other: no unit that an earlier one committed is computed again.

    They start where modules of the user's have the names of Python's own, which none may import.
    """

    def __init__(self, model: Path, inputs: Path, folder: Path) -> None:
        self.model, self.inputs, self.out, self.folder = model, inputs, folder / "out", folder
        write_user_modules(folder)
        self.seen: dict[str, bytes] = {}

    def run(self, *options: str, more: int = 0) -> subprocess.Popen[str]:
        """Start the next run and wait until it committed so many units."""
        process = start(self.model, self.inputs, self.out, *UNIT, *options, cwd=self.folder)
        wait_for_commits(process, self.out, len(self.seen) + more)
        return process

    def check(self) -> None:
        now = commits_of(self.out)
        assert {name: now[name] for name in self.seen} == self.seen, "a committed unit was computed again"
        self.seen = now

    @property
    def card(self) -> str:
        return (self.out / "README.md").read_text()


def kill_all(life: Life) -> None:
    kill_run(life.run(more=2))
    assert "In progress: " in life.card


def stop(life: Life) -> None:
    process = life.run(more=1)
    started = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    errors = finish(process, 1)
    assert "stopped; what is committed stays" in errors
    assert "Traceback" not in errors
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline, "processes outlive the run"
        time.sleep(0.1)
    assert f"Not complete: {len(commits_of(life.out))} units were committed" in life.card


def run_out_of_time(life: Life) -> None:
    errors = finish(life.run("--max-runtime", "3s"), 5)
    assert "--max-runtime is over; run it again to go on" in errors
    assert not (life.out / "_lock.json").exists()


def lose_the_head(life: Life) -> None:
    run = life.run()
    read_until(run, "scoring on 1 replica")
    lose(run, "gcs_server")


def lose_the_raylet(life: Life) -> None:
    lose(life.run(more=1), "raylet")


def lose(run: subprocess.Popen[str], process: str) -> None:
    """Kill a process of the Ray that the run started."""
    family = descendants(run.pid)
    kill([pid for pid in family if program_of(pid) == process])
    told = finish(run, 1).splitlines()
    what = {"raylet": "this node's raylet", "gcs_server": "the head"}[process]
    assert re.fullmatch(
        f"armo-ray score: failed: {what} of the Ray that was started here is gone(, and the process ended with it)?"
        r"\. What is committed stays: run the same command again",
        told[-1],
    )
    assert not any("Traceback" in line for line in told)
    wait_for_orphans(family)


def test_a_run_that_is_killed_stopped_out_of_time_and_loses_ray_goes_on_and_ends_as_an_undisturbed_one(
    tiny_model: Path, formats: Path, tmp_path: Path
) -> None:
    score_locally(tiny_model, formats, tmp_path / "undisturbed", unit_rows=4)
    (tmp_path / "work").mkdir()
    life = Life(tiny_model, formats, tmp_path / "work")
    for disturb in (kill_all, stop, run_out_of_time, lose_the_head, lose_the_raylet):
        disturb(life)
        assert not (life.out / "_SUCCESS").exists()
        life.check()
    finish(life.run("--max-runtime", "1h"))
    life.check()
    assert "Complete. " in life.card
    assert "| scored | 260 |" in life.card
    found, expected = scores_of(life.out), scores_of(tmp_path / "undisturbed")
    assert found.keys() == expected.keys()
    assert max(abs(found[key] - expected[key]) for key in expected) < 1e-5
    assert verify_output(str(life.out))[1] == []
