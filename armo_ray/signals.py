"""Stopping a command: SIGTERM acts like Ctrl-C, and so does the end of a time limit."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


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


class Interruption:
    """Whether a body was asked to end."""

    asked = False

    def check(self) -> None:
        """Raises KeyboardInterrupt if it was."""
        if self.asked:
            raise KeyboardInterrupt


@contextmanager
def gently(stop: Callable[[], None], seconds: float) -> Iterator[Interruption]:
    """Let the body end by itself when it is interrupted: only a second interruption, or `seconds` later, ends it.

    Args:
        stop: called in a thread at the first interruption, to make the body end.

    Outside of the main thread, which alone is interrupted, it does nothing.
    """
    told = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    timers: list[threading.Timer] = []

    def interrupted(number: int, frame: Any) -> None:
        handler: Any = before[number]
        try:
            handler(number, frame)
        except KeyboardInterrupt:
            if told.asked:
                raise
            told.asked = True
            timers.append(
                threading.Timer(seconds, os.kill, [os.getpid(), number])
            )  # the same: others may be ignored
            for thread in (timers[0], threading.Thread(target=stop)):
                thread.daemon = True
                thread.start()

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGALRM]
    before: dict[int, Any] = {n: signal.getsignal(n) for n in numbers if callable(signal.getsignal(n))}
    for number in before:
        signal.signal(number, interrupted)
    try:
        yield told
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
