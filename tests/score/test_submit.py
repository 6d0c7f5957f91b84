"""`ray job submit` as the README has it, from S3 to S3, on nodes that ask for a token, come late, and are lost."""

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
from contextlib import contextmanager
from pathlib import Path

import pytest

from armo_ray.storage.store import Store
from armo_ray.verify.output import verify_output
from jobs.measure.scale import descendants
from tests.support.local import rows_of, score_locally
from tests.support.paths import ROOT, SAMPLE
from tests.support.runs import free_ports, kill_run, read_until, task_of, wait_until

pytest_plugins = ("tests.support.s3_server",)
pytestmark = pytest.mark.ray

RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture
def head(s3: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head of three GPUs, in name, on loopback, whose jobs find the S3 server; yields the environment that reaches
    it. Its workers never collect cycles of references: a replica of a lost node finds no room if the others live on
    until one happens to be collected."""
    gcs, dashboard, agent = free_ports(3)
    (tmp_path / "sitecustomize.py").write_text("import gc; gc.disable()")
    environment = (
        {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": f"127.0.0.1:{gcs}",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the entry point's python is the head's
            "PYTHONPATH": str(tmp_path),
        }
    )
    command = ["--head", f"--port={gcs}", "--num-cpus=2", "--num-gpus=3"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    with node(environment, tmp_path / "head.log", *command, f"--dashboard-agent-listen-port={agent}"):
        yield environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}


@contextmanager
def node(environment: dict[str, str], log: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A node of a cluster; its process is an ancestor of all that run there."""
    own = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    folder = tempfile.mkdtemp(prefix="ray-")  # names of sockets have at most 107 bytes
    command = [RAY, "start", "--block", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}", *options]
    with log.open("w") as file:
        process = subprocess.Popen(command, env=own, stdout=file, stderr=file)
        yield process
        kill_run(process)
    shutil.rmtree(folder, ignore_errors=True)


def submit(environment: dict[str, str], *options: str) -> subprocess.Popen[str]:
    command = [RAY, "job", "submit", "--working-dir", ".", "--", "python", "-m", "jobs.score"]
    own = {name: value for name, value in environment.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    return subprocess.Popen(
        [*command, "jobs/nightly.toml", *options],
        cwd=ROOT,
        env=own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
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
def test_a_submitted_job_wants_a_token_waits_for_a_node_works_on_every_one_and_loses_one_without_a_trace(
    s3: str, head: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    wait_until_up(head)
    assert status_of(head, secrets.token_hex(32)) in (401, 403)
    store = Store(s3)
    store.write("in/date=2026-11-20/a.jsonl", SAMPLE.read_bytes())
    options = ["--input", f"{s3}/in/", "--output", f"{s3}/out", "--model", str(tiny_model), "--keep", "id"]
    options += ["--dtype", "float32", "--unit-rows", "10", "--replicas", "2"]
    job = submit(head, *options, "--gpus-per-replica", "2", "--device", "cpu,cpu")
    read_until(job, "waiting for the GPUs of 2 replicas of 2 GPUs: the nodes have 3")
    assert not store.list_names("out/_commits")
    with node(
        head, tmp_path / "late.log", f"--address={head['RAY_ADDRESS']}", "--num-cpus=1", "--num-gpus=3"
    ) as late:
        seen: set[str] = set()

        def worked() -> bool:
            seen.update(map(task_of, descendants(late.pid)))
            return "Replica" in seen and len(store.list_names("out/_commits")) >= 3

        wait_until(job, worked)
    told = job.communicate(timeout=300)[0]
    assert job.returncode == 0, told
    assert "260 of 260 candidates scored, 0 rejected" in told
    assert verify_output(f"{s3}/out") == ({"units": 26, "candidates": 260, "scored": 260, "rejected": 0}, [])
    assert (store.read_json("out/_SUCCESS") or {})["totals"]["scored"] == 260
    assert head["RAY_AUTH_TOKEN"].encode() not in store.read("out/_run.json")
    assert b"| scored | 260 |" in store.read("out/README.md")
    assert (store.read_json("out/status.json") or {})["meaning"] == "complete"
    score_locally(tiny_model, SAMPLE, tmp_path / "out", unit_rows=10)
    found, expected = by_place(f"{s3}/out"), by_place(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert max(abs(found[place] - expected[place]) for place in found) < 1e-5


def by_place(out: Path | str) -> dict[tuple[int, int], float]:
    return {(row["source_row"], row["candidate"]): row["score"] for row in rows_of(out)}
