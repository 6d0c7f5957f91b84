"""Stopping a command: SIGTERM acts like Ctrl-C, and so does the end of a time limit."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def stop_on_sigterm() -> None:
    """Handle SIGTERM, which announces the end of a spot machine, like Ctrl-C: stop and keep committed work."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


_over = threading.Event()  # the time limit that is running has ended


class OutOfTime(Exception):  # noqa: N818 - not an error
    """The time limit of a run is over."""


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Interrupt the body like Ctrl-C after this many seconds, and then raise OutOfTime. None sets no limit."""
    if seconds is None:
        yield
        return

    def stop(*_: object) -> None:
        _over.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, stop)
    # repeated, because an exception raised inside a callback from C is lost
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 30.0)
    try:
        yield
    except KeyboardInterrupt:
        if _over.is_set():
            raise OutOfTime from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _over.clear()


def time_is_over() -> bool:
    """Whether the body of `limited` is being interrupted because its time is over."""
    return _over.is_set()
