"""The life of a run: killed, stopped, out of time, without its Ray, it goes on each time and ends whole."""

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from armo_ray.cli.main import main
from armo_ray.verify.output import verify_output
from jobs.measure.scale import descendants
from tests.support.local import score_locally, scores_of
from tests.support.runs import (
    commits_of,
    finish,
    kill,
    kill_run,
    program_of,
    start,
    wait_for_commits,
    wait_for_orphans,
    write_user_modules,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

UNIT = ("--unit-rows", "4")


class Life:
    """Runs into one output, one after the other: no unit that an earlier one committed is computed again.

    Processes start where modules of the user's have the names of Python's own, which none may import.
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


def lose_its_raylet(life: Life) -> None:
    run = life.run(more=1)
    family = descendants(run.pid)
    kill([pid for pid in family if program_of(pid) == "raylet"])
    errors = finish(run, 1).splitlines()
    assert re.fullmatch(
        r"armo-ray score: failed: this node's raylet of the Ray that was started here is gone"
        r"(, and the process ended with it)?\. What is committed stays: run the same command again",
        errors[-1],
    )
    assert not any("Traceback" in line for line in errors)
    wait_for_orphans(family)


def test_a_run_that_is_killed_stopped_out_of_time_and_loses_ray_goes_on_and_ends_as_an_undisturbed_one(
    local_ray: str, tiny_model: Path, formats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score_locally(tiny_model, formats, tmp_path / "undisturbed", unit_rows=4)
    (tmp_path / "work").mkdir()
    life = Life(tiny_model, formats, tmp_path / "work")
    for disturb in (kill_all, stop, lose_its_raylet):
        disturb(life)
        assert not (life.out / "_SUCCESS").exists()
        life.check()
    command = ["score", "--model", str(tiny_model), "--dtype", "float32", "--gpus-per-replica", "0"]
    command += ["--input", str(formats), "--output", str(life.out), *UNIT, "--max-runtime"]
    assert main([*command, "2s"]) == 5
    assert "--max-runtime is over; run it again to go on" in capsys.readouterr().err
    assert not (life.out / "_lock.json").exists()
    life.check()
    assert main([*command, "1h"]) == 0
    life.check()
    assert "Complete. " in life.card
    assert "| scored | 260 |" in life.card
    found, expected = scores_of(life.out), scores_of(tmp_path / "undisturbed")
    assert found.keys() == expected.keys()
    assert max(abs(found[key] - expected[key]) for key in expected) < 1e-5
    assert verify_output(str(life.out))[1] == []
