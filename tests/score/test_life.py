"""The life of a run: killed, stopped, out of time, without its Ray, it goes on each time and ends whole."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

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
    task_of,
    wait_for_commits,
    wait_for_orphans,
    write_user_modules,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

UNIT = ("--unit-rows", "4")


class Life:
    """Runs into one output, one after the other: no unit that an earlier one committed is computed again."""

    def __init__(self, ray: str, model: Path, inputs: Path, folder: Path) -> None:
        self.ray, self.model, self.inputs, self.out, self.folder = ray, model, inputs, folder / "out", folder
        self.seen: dict[str, bytes] = {}

    def join(self) -> subprocess.Popen[str]:
        """Start the next run on the Ray of the tests and wait until it committed a unit."""
        options = ("--gpus-per-replica", "0", "--replicas", "1")
        return self._run(start(self.model, self.inputs, self.out, *UNIT, *options, RAY_ADDRESS=self.ray))

    def run_alone(self) -> subprocess.Popen[str]:
        """The same with a Ray of its own, where modules of the user's have names that no process may import."""
        write_user_modules(self.folder)
        return self._run(start(self.model, self.inputs, self.out, *UNIT, cwd=self.folder))

    def _run(self, process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        wait_for_commits(process, self.out, len(self.seen) + 1)
        return process

    def check(self) -> None:
        now = commits_of(self.out)
        assert {name: now[name] for name in self.seen} == self.seen, "a committed unit was computed again"
        self.seen = now

    @property
    def card(self) -> str:
        return (self.out / "README.md").read_text()


def kill_the_driver(life: Life) -> None:
    kill_run(life.join())
    assert "In progress: " in life.card
    wait_for_workers()


@contextmanager
def sigterm_after_commits(life: Life) -> Iterator[None]:
    """Send SIGTERM to this process as soon as a unit is committed in the body."""

    def send() -> None:
        while len(commits_of(life.out)) == len(life.seen):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    sender = Thread(target=send, daemon=True)
    sender.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not sender.is_alive()


def wait_for_workers() -> None:
    """The workers of a run end soon after its driver."""
    deadline = time.monotonic() + 60
    while any(map(task_of, descendants(os.getpid()))):
        assert time.monotonic() < deadline, "workers outlive the run"
        time.sleep(0.1)


def lose_its_raylet(life: Life) -> None:
    run = life.run_alone()
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


@pytest.mark.parametrize(
    "disturbances",
    [
        pytest.param([kill_the_driver], id="killed"),
        pytest.param(
            [kill_the_driver, lose_its_raylet], id="killed-and-without-ray", marks=pytest.mark.nightly
        ),
    ],
)
def test_a_run_that_is_disturbed_stopped_and_out_of_time_goes_on_and_ends_as_an_undisturbed_one(
    disturbances: list[Callable[[Life], None]],
    local_ray: str,
    tiny_model: Path,
    formats: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    score_locally(tiny_model, formats, tmp_path / "undisturbed", unit_rows=4)
    (tmp_path / "work").mkdir()
    life = Life(local_ray, tiny_model, formats, tmp_path / "work")
    for disturb in disturbances:
        disturb(life)
        assert not (life.out / "_SUCCESS").exists()
        life.check()
    command = ["score", "--model", str(tiny_model), "--dtype", "float32", "--gpus-per-replica", "0"]
    command += ["--input", str(formats), "--output", str(life.out), *UNIT, "--max-runtime"]
    with sigterm_after_commits(life):
        assert main([*command, "1h"]) == 1
    errors = capsys.readouterr().err
    assert "stopped; what is committed stays" in errors
    assert "Traceback" not in errors
    assert f"Not complete: {len(commits_of(life.out))} units were committed" in life.card
    life.check()
    assert main([*command, "2s"]) == 5
    assert "--max-runtime is over; run it again to go on" in capsys.readouterr().err
    assert json.loads((life.out / "status.json").read_text())["status"] == 5
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
