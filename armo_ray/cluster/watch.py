"""Processes without which Ray ends the driver silently, watched: where one is gone, the work stops and says so.

Ray may be faster: its C++ code ends a driver in the middle of a call to a raylet that is gone. A process beside
the driver then says why.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

logger = logging.getLogger(__name__)

_LOOK_S = 1.0
_CONNECT_S = 5.0
_GRACE_S = 10.0  # to stop in: Ray ends a driver 15 s after its raylet, and calls to a head that is gone hang

command = "armo-ray"  # what the process runs, as its errors begin


class Lost(RuntimeError):  # noqa: N818 - a name for what it reports
    """What the work depends on is gone."""


class Endpoint(NamedTuple):
    """Where a process listens, and for how many seconds it may fail to."""

    what: str
    host: str
    port: int
    patience: float


def answers(endpoint: Endpoint) -> bool:
    """Whether a process listens there, however busy it is: the kernel accepts the connection."""
    try:
        socket.create_connection((endpoint.host, endpoint.port), _CONNECT_S).close()
    except OSError:
        return False
    return True


@contextmanager
def watched(endpoints: Sequence[Endpoint], advice: str) -> Iterator[None]:
    """Stop what is done inside, as Ctrl-C does, when an endpoint is gone; where it hangs, end the process.

    Raises Lost, which names the endpoint and ends with the advice. In another thread than the main one nothing
    is stopped, and only an error that comes of the loss is told as the loss.
    """
    ended = threading.Event()
    lost: list[str] = []

    def told() -> str:
        return _gone(lost[0], advice)

    def watch() -> None:
        lost.extend(_first_lost(endpoints, ended))
        if lost and not ended.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            if not ended.wait(_GRACE_S):
                _print_failure(command, told())
                witness.communicate(b"told")
                os._exit(1)

    witness = subprocess.Popen(
        [sys.executable, "-I", __file__, json.dumps([command, endpoints, advice])],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the driver
    )
    watcher = threading.Thread(target=watch, daemon=True)
    if threading.current_thread() is threading.main_thread():
        watcher.start()
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception):  # perhaps of the loss, and earlier than the watcher
            lost += [endpoint.what for endpoint in endpoints if not answers(endpoint)]
        if lost:
            raise Lost(told()) from None
        raise
    finally:
        ended.set()
        if watcher.ident:
            watcher.join()
        witness.communicate(b"ended")


def _gone(what: str, advice: str) -> str:
    return f"{what} is gone. {advice}"


def _print_failure(program: str, message: str) -> None:
    print(f"{program}: failed: {message}", file=sys.stderr, flush=True)


def _bear_witness(program: str, endpoints: Sequence[Endpoint], advice: str) -> None:
    """Wait for the process that writes to stdin. Where it ends without a word, print which endpoint is gone."""
    lost = [] if sys.stdin.read() else [endpoint.what for endpoint in endpoints if not answers(endpoint)]
    if lost:
        _print_failure(program, _gone(lost[0], advice))


def _first_lost(endpoints: Sequence[Endpoint], ended: threading.Event) -> list[str]:
    """Wait until endpoints are silent for longer than their patience, or until the end; returns what these are."""
    silent: dict[Endpoint, float] = {}  # since when
    while not ended.wait(_LOOK_S):
        now, before = time.monotonic(), silent
        silent = {endpoint: before.get(endpoint, now) for endpoint in endpoints if not answers(endpoint)}
        for endpoint in silent.keys() - before.keys():
            logger.warning("%s does not answer: stopping in %g s", endpoint.what, endpoint.patience)
        if lost := [endpoint.what for endpoint, since in silent.items() if now - since >= endpoint.patience]:
            return lost
    return []


if __name__ == "__main__":
    program, rows, last_words = json.loads(sys.argv[1])
    _bear_witness(program, [Endpoint(*row) for row in rows], last_words)
