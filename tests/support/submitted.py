"""A head that asks for a token, nodes that join it, and jobs that are submitted to it."""

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

from tests.support.paths import ROOT
from tests.support.runs import free_ports, kill_run

RAY = str(Path(sys.executable).with_name("ray"))


@contextmanager
def head_in(folder: Path) -> Iterator[dict[str, str]]:
    """A head of three GPUs, in name, on loopback, whose jobs find the S3 server; yields the environment that reaches
    it. Its workers never collect cycles of references: a replica of a lost node finds no room if the others live on
    until one happens to be collected."""
    gcs, dashboard, agent = free_ports(3)
    (folder / "sitecustomize.py").write_text("import gc; gc.disable()")
    environment = (
        {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": f"127.0.0.1:{gcs}",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the entry point's python is the head's
            "PYTHONPATH": str(folder),
        }
    )
    command = ["--head", f"--port={gcs}", "--num-cpus=2", "--num-gpus=3"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    with node(environment, folder / "head.log", *command, f"--dashboard-agent-listen-port={agent}"):
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


def submit(environment: dict[str, str], *command: str) -> subprocess.Popen[str]:
    """`ray job submit -- python -m` with a module and its arguments, as the README has it."""
    own = {name: value for name, value in environment.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    return subprocess.Popen(
        [RAY, "job", "submit", "--working-dir", ".", "--", "python", "-m", *command],
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
