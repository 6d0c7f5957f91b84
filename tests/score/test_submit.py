"""`ray job submit` as the README has it, against a head that asks for a token."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT, SAMPLE
from tests.support.runs import free_ports, kill_run

RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head on loopback; yields the environment that reaches it."""
    gcs, dashboard, agent = free_ports(3)
    short = tempfile.mkdtemp(prefix="ray-")  # names of sockets have at most 107 bytes
    environment = (
        {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the entry point's python is the head's
        }
    )
    command = [RAY, "start", "--head", "--block", f"--port={gcs}", "--num-cpus=2", "--num-gpus=0"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--temp-dir={short}"]
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        yield environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        kill_run(process)
    shutil.rmtree(short, ignore_errors=True)


def ray_job(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RAY, "job", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def wait_until_up(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 90
    while (done := ray_job(environment, "list")).returncode:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(1)


@pytest.mark.timeout(400)
def test_a_submitted_job_scores_its_input_and_wants_a_token(
    head: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    wait_until_up(head)
    out = tmp_path / "out"
    submit = ("submit", "--working-dir", ".", "--", "python", "-m", "jobs.score", "jobs/nightly.toml")
    options = ("--input", str(SAMPLE), "--output", str(out), "--model", str(tiny_model))
    refused = ray_job(head | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}, *submit, *options)
    assert refused.returncode != 0
    assert not out.exists()
    done = ray_job(head, *submit, *options, "--dtype", "float32")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "260 of 260 candidates scored, 0 rejected" in done.stdout + done.stderr
    assert json.loads((out / "_SUCCESS").read_text())["totals"]["scored"] == 260
    assert head["RAY_AUTH_TOKEN"] not in (out / "_run.json").read_text()
    wrong = ray_job(head, *submit, *options, "--dtype", "float32", "--unit-rows", "7")
    assert wrong.returncode == 1
    assert "unit_rows was 2048, now 7" in wrong.stdout + wrong.stderr
