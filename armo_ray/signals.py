"""How a command is stopped: by SIGTERM as by Ctrl-C, or when its time is over."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def stop_on_sigterm() -> None:
    """Take SIGTERM, which announces the end of a spot machine, as Ctrl-C: stop and leave what is committed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


class OutOfTime(Exception):  # noqa: N818 - no error
    """The time that a run was given is over."""


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Stop what is done inside as Ctrl-C does when the time is over, and raise OutOfTime then."""
    if seconds is None:
        yield
        return
    over = threading.Event()

    def stop(*_: object) -> None:
        over.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, stop)
    # again after a while: an exception is lost where it meets a callback of C
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 30.0)
    try:
        yield
    except KeyboardInterrupt:
        if over.is_set():
            raise OutOfTime from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
