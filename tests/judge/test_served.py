"""`--serve vllm` starts the command, waits until it is healthy, and leaves none behind.

vLLM needs a GPU. Here its command is a script that starts another server with the same arguments.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from armo_ray.endpoint.client import Endpoint, check
from armo_ray.errors import ConfigError
from armo_ray.judge.served import Server, check_installed
from tests.support.paths import ROOT

STAND_IN = f"""#!/bin/sh
echo "serve: $@"
[ "$1" = serve ] && [ "$3" = --host ] && [ "$5" = --port ] || exit 9
[ "$2" = broken ] && echo "CUDA out of memory" && exit 1
sleep 1
cd {ROOT} && exec {sys.executable} -m tests.support.fake_endpoint --port "$6"
"""


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    command = tmp_path / "vllm"
    command.write_text(STAND_IN)
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return command


def test_a_server_is_used_once_it_is_healthy_and_gets_the_arguments(vllm: Path) -> None:
    server = Server("fake", 2, ["--max-model-len=8192"])
    try:
        assert check(Endpoint(server.url, "fake")) == "fake"
        log = Path(server.log.name).read_text()
        assert "--tensor-parallel-size 2 --max-model-len=8192" in log
    finally:
        server.stop()


def test_a_server_that_does_not_start_is_told_with_the_end_of_its_log(vllm: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ended with status 1: (?s:.*)CUDA out of memory"):
        Server("broken", 1, [])


def test_a_server_dies_with_the_process_that_started_it(vllm: Path) -> None:
    code = (
        "from armo_ray.judge.served import Server\nimport time\n"
        "server = Server('fake', 1, [])\nprint(server.process.pid, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        owner.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_vllm_it_is_said_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no command vllm .* pip install vllm .* --endpoint"):
        check_installed()
