"""Runs of the command line in processes of their own: started, watched and killed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from random import randrange
from typing import Any

from jobs.measure.scale import descendants
from tests.support.paths import ROOT

# names of modules that Python or the packages of a run import after the first of this package
NAMES = ("profile", "random", "config", "queue", "data", "enum", "json", "typing", "datasets", "packaging")


def write_user_modules(folder: Path) -> None:
    """Modules that end the process that imports them."""
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the user')\n", "utf-8")


def start(
    model: Path,
    inputs: Any,
    output: Any,
    *options: str,
    cwd: Path = ROOT,
    command: str = "score",
    **variables: str,
) -> subprocess.Popen[str]:
    """`armo-ray score`, or a command with its options, in float32, on a Ray of its own unless `variables` of the
    environment say otherwise."""
    words = [sys.executable, "-m", "armo_ray", command, "--model", str(model), "--dtype", "float32"]
    words += ["--input", str(inputs), "--output", str(output), *options]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.Popen(
        words, cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    """Wait for a run, whose exit status must be this one; returns what it said on stderr."""
    _, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors
    return errors


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Wait for a line with `text` on a run's stderr, or on its stdout where that has both."""
    told = []
    for line in process.stderr or process.stdout or ():
        told.append(line)
        if text in line:
            return
    raise AssertionError(f"the run ended without {text!r}: {''.join(told)}")


def wait_until(process: subprocess.Popen[str], done: Callable[[], bool]) -> None:
    """Wait until something is so, which must be while the run goes on."""
    deadline = time.monotonic() + 180
    while not done():
        assert process.poll() is None, f"the run ended before: {process.communicate()[1]}"
        assert time.monotonic() < deadline, "nothing in three minutes"
        time.sleep(0.1)


def commits_of(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "_commits").glob("*.json")}


def wait_for_commits(process: subprocess.Popen[str], output: Path, count: int) -> None:
    wait_until(process, lambda: len(list(output.glob("_commits/*.json"))) >= count)


def task_of(pid: int) -> str:
    """What a Ray worker is doing, `_read`, `_write` or `Replica`; nothing of other processes."""
    try:
        name = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except OSError:
        return ""
    found = re.search(r"ray::[^\0 ]*(_read|_write|Replica)\b", name)
    return found[1] if found else ""


def program_of(pid: int) -> str:
    """The name of the program of a process; nothing of one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode().rsplit("/", 1)[-1]
    except OSError:
        return ""


def kill(pids: list[int]) -> None:
    """With SIGKILL, those that are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_run(process: subprocess.Popen[Any]) -> None:
    """A process and all that it started."""
    kill(descendants(process.pid))
    process.communicate()


def wait_for_orphans(family: list[int]) -> None:
    """The workers of a driver that is gone end by themselves, a little later; Ray's own agents take longer."""
    deadline = time.monotonic() + 60
    while any(map(task_of, family)):
        assert time.monotonic() < deadline, "workers outlive their driver"
        time.sleep(0.2)
    kill(family)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, below those that the system gives to outgoing connections."""
    first = 20000 + 4000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 3)  # each worker its own
    with ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            listener = stack.enter_context(socket.socket())
            with suppress(OSError):
                listener.bind(("127.0.0.1", randrange(first, first + 4000)))
                ports.append(listener.getsockname()[1])
        return ports
