"""Something that is done now and then beside the work, and never at its cost."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def every(seconds: float, what: str, act: Callable[[], None], wait_s: float | None = None) -> Iterator[None]:
    """Do something again and again while the body runs, in a thread of its own: at its start, every so many seconds,
    and at its end.

    What fails is told once and tried again the next time. The last time is waited for, `wait_s` at most.
    """
    ended = threading.Event()

    def repeat() -> None:
        told = False
        while True:
            last = ended.is_set()
            try:
                act()
            except Exception as error:  # whatever it is, the work is worth more
                if not told:
                    logger.warning("%s failed, the run goes on: %s", what, error)
                told = True
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
