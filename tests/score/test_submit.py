"""`ray job submit` as the README has it, against a head that asks for a token, from S3 to S3."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from armo_ray.storage.store import Store
from armo_ray.verify.output import verify_output
from tests.support.local import rows_of, score_locally
from tests.support.paths import ROOT, SAMPLE
from tests.support.runs import free_ports, kill_run

pytest_plugins = ("tests.support.s3_server",)
pytestmark = pytest.mark.ray

RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture
def head(s3: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head on loopback, whose jobs find the S3 server; yields the environment that reaches it."""
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


def submit(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [RAY, "job", "submit", "--working-dir", ".", "--", "python", "-m", "jobs.score"]
    return subprocess.run(
        [*command, "jobs/nightly.toml", *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def status_of(environment: dict[str, str], token: str) -> int:
    """What the head answers to whoever asks for its jobs with a token; 0 where it does not answer yet."""
    request = urllib.request.Request(
        f"{environment['RAY_API_SERVER_ADDRESS']}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def wait_until_up(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 90
    while (status := status_of(environment, environment["RAY_AUTH_TOKEN"])) != 200:
        assert time.monotonic() < deadline, status
        time.sleep(0.2)


@pytest.mark.timeout(400)
def test_a_submitted_job_from_s3_to_s3_scores_as_one_process_does_on_a_disk_and_wants_a_token(
    s3: str, head: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    wait_until_up(head)
    assert status_of(head, secrets.token_hex(32)) in (401, 403)
    store = Store(s3)
    store.write("in/date=2026-11-20/a.jsonl", SAMPLE.read_bytes())
    options = ("--input", f"{s3}/in/", "--output", f"{s3}/out", "--model", str(tiny_model), "--keep", "id")
    done = submit(head, *options, "--dtype", "float32", "--unit-rows", "40")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "260 of 260 candidates scored, 0 rejected" in done.stdout + done.stderr
    assert verify_output(f"{s3}/out") == ({"units": 7, "candidates": 260, "scored": 260, "rejected": 0}, [])
    assert (store.read_json("out/_SUCCESS") or {})["totals"]["scored"] == 260
    assert head["RAY_AUTH_TOKEN"].encode() not in store.read("out/_run.json")
    assert b"| scored | 260 |" in store.read("out/README.md")
    assert (store.read_json("out/status.json") or {})["meaning"] == "complete"
    score_locally(tiny_model, SAMPLE, tmp_path / "out", unit_rows=40)
    found, expected = by_place(f"{s3}/out"), by_place(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert max(abs(found[place] - expected[place]) for place in found) < 1e-5


def by_place(out: Path | str) -> dict[tuple[int, int], float]:
    return {(row["source_row"], row["candidate"]): row["score"] for row in rows_of(out)}
