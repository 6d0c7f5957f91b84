"""Repeating an action in the background; its failures do not affect the work."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def every(seconds: float, what: str, act: Callable[[], None], wait_s: float | None = None) -> Iterator[None]:
    """Call `act` in a separate thread while the body runs: at its start, every `seconds` seconds, and at its end.

    The first failure is logged; later calls go on. At the end, waits at most `wait_s` seconds for the last call.
    `what` names the action in the log.
    """
    ended = threading.Event()

    def repeat() -> None:
        logged = False
        while True:
            last = ended.is_set()
            try:
                act()
            except Exception as error:  # any error: it must not end the run
                if not logged:
                    logger.warning("%s failed, the run goes on: %s", what, error)
                logged = True
            if last:
                return
            ended.wait(seconds)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(wait_s)
