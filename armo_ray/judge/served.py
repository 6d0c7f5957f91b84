"""A server of the judge's model on the GPUs of an actor: `vllm serve`, spoken to like any other endpoint."""

import ctypes
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from armo_ray.errors import ConfigError

logger = logging.getLogger(__name__)

_LOOK_S = 1.0
_STARTS_S = 1800.0  # a model of 70 billion parameters is downloaded, loaded and compiled in this time
_LINES = 20  # of the log that an error shows
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl


def check_installed() -> str:
    """The path of the command `vllm`. Raises ConfigError if there is none."""
    beside = Path(sys.executable).parent / "vllm"
    found = str(beside) if beside.exists() else shutil.which("vllm")
    if found is None:
        raise ConfigError(
            "serve: there is no command vllm in this environment: pip install vllm on every node, or start a server "
            "yourself and give its URL with --endpoint"
        )
    return found


class Server:
    """A running `vllm serve`. It dies with this process.

    Args:
        model: as vLLM takes it, a directory or a hub id; replies name it so, too.
        gpus: that it may use; with more than one, each layer is split over all of them.
        arguments: further ones of `vllm serve`.

    Raises:
        RuntimeError: the server ended, or did not answer in time; the message has the end of its log.
    """

    def __init__(self, model: str, gpus: float, arguments: Sequence[str]) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}/v1"
        self.log = tempfile.NamedTemporaryFile("w+", prefix="vllm-", suffix=".log", delete=False)  # noqa: SIM115
        command = [check_installed(), "serve", model, "--host", "127.0.0.1", "--port", str(port)]
        if gpus > 1:
            command += ["--tensor-parallel-size", str(int(gpus))]
        command += arguments
        logger.info("starting %s, its log is %s", " ".join(command), self.log.name)
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=subprocess.STDOUT, preexec_fn=_die_with_parent
        )
        try:
            self._wait(f"http://127.0.0.1:{port}/health")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server."""
        self.process.kill()
        self.process.wait()

    def _wait(self, url: str) -> None:
        deadline = time.monotonic() + _STARTS_S
        while time.monotonic() < deadline:
            if (status := self.process.poll()) is not None:
                raise RuntimeError(f"vllm serve ended with status {status}: {self._end_of_log()}")
            with suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    return
            time.sleep(_LOOK_S)
        raise RuntimeError(f"vllm serve did not answer in {_STARTS_S:g} s: {self._end_of_log()}")

    def _end_of_log(self) -> str:
        lines = Path(self.log.name).read_text("utf-8", "replace").splitlines()
        return "\n".join(lines[-_LINES:])


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _die_with_parent() -> None:
    if os.uname().sysname == "Linux":  # else the server would keep the GPU of an actor that was killed
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
