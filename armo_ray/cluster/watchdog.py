"""A watch over the processes whose loss makes Ray end the driver silently: if one is gone, stop and say so.

Ray may be faster: its C++ code ends a driver during a call to a raylet that is gone. A separate process, the witness,
then prints the reason.
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

LOCAL = "local"  # address of a Ray that a command starts for itself
HEAD_PATIENCE_S = 30.0  # wait for a lost head, which may restart; half as long as Ray itself waits
_LOOK_S = 1.0
_CONNECT_S = 5.0
# time to stop: Ray ends a driver 15 s after its raylet is gone, and calls to a lost head hang
_GRACE_S = 10.0

command = "armo-ray"  # name of the command at the start of error messages


class Lost(RuntimeError):  # noqa: N818 - named after what it reports
    """A process that the work depends on is gone."""


class Endpoint(NamedTuple):
    """An address where a process listens."""

    what: str  # description of the process
    host: str
    port: int
    patience: float  # seconds for which it may fail to listen


def advice(address: str) -> str:
    """What to do if a process of the Ray at this address is gone."""
    again = "What is committed stays: run the same command again"
    if address == LOCAL:
        return again
    return (
        "See that it is up (`ray status`) and, where it wants a token, that RAY_AUTH_MODE=token is set. "
        f"{again}, or without RAY_ADDRESS, which starts a Ray on this machine"
    )


def answers(endpoint: Endpoint) -> bool:
    """Whether a process listens at the endpoint, even if it is busy: the kernel accepts the connection."""
    try:
        socket.create_connection((endpoint.host, endpoint.port), _CONNECT_S).close()
    except OSError:
        return False
    return True


@contextmanager
def watched(endpoints: Sequence[Endpoint], advice: str) -> Iterator[None]:
    """Interrupt the body like Ctrl-C when an endpoint is gone; if it does not stop in time, end the process.

    Raises Lost, with a message that names the endpoint and ends with the advice. In a thread other than the main one,
    nothing is interrupted, and Lost only replaces an error that the loss caused.
    """
    ended = threading.Event()
    lost: list[str] = []

    def message() -> str:
        return f"{lost[0]} is gone. {advice}"

    def watch() -> None:
        lost.extend(_first_lost(endpoints, ended))
        if lost and not ended.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            if not ended.wait(_GRACE_S):
                _print_failure(command, message())
                witness.communicate(b"printed")
                os._exit(1)

    witness = subprocess.Popen(
        [sys.executable, "-I", __file__, json.dumps([command, endpoints, advice])],
        stdin=subprocess.PIPE,
        start_new_session=True,  # so that Ctrl-C reaches only the driver
    )
    watcher = threading.Thread(target=watch, daemon=True)
    if threading.current_thread() is threading.main_thread():
        watcher.start()
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception):  # the loss may have caused it before the watcher noticed
            lost += [endpoint.what for endpoint in endpoints if not answers(endpoint)]
        if lost:
            raise Lost(message()) from None
        raise
    finally:
        ended.set()
        if watcher.ident:
            watcher.join()
        witness.communicate(b"ended")


def _print_failure(program: str, message: str) -> None:
    print(f"{program}: failed: {message}", file=sys.stderr, flush=True)


def _report_loss(program: str, endpoints: Sequence[Endpoint], advice: str) -> None:
    """Wait for the driver, which writes to stdin when it ends. If it ends without that, print what is gone."""
    lost = [] if sys.stdin.read() else [endpoint.what for endpoint in endpoints if not answers(endpoint)]
    if lost:
        _print_failure(program, f"{lost[0]} is gone, and the process ended with it. {advice}")


def _first_lost(endpoints: Sequence[Endpoint], ended: threading.Event) -> list[str]:
    """Wait until endpoints are silent for longer than their patience, and describe them; empty if `ended` is set."""
    silent: dict[Endpoint, float] = {}  # start of the silence
    while not ended.wait(_LOOK_S):
        now, before = time.monotonic(), silent
        silent = {endpoint: before.get(endpoint, now) for endpoint in endpoints if not answers(endpoint)}
        for endpoint in silent.keys() - before.keys():
            logger.warning("%s does not answer: stopping in %g s", endpoint.what, endpoint.patience)
        if lost := [endpoint.what for endpoint, since in silent.items() if now - since >= endpoint.patience]:
            return lost
    return []


if __name__ == "__main__":
    program, rows, given_advice = json.loads(sys.argv[1])
    _report_loss(program, [Endpoint(*row) for row in rows], given_advice)
