"""What a run is doing: one line that is rewritten on a terminal, one log line every 30 s elsewhere."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 30.0
_DRAW_EVERY_S = 0.2


class Progress:
    """Counts commit records as they come in, and says so from time to time, also while none comes in.

    Args:
        total_bytes: of the input that is left to do.
        began: when the run did, in seconds since 1970.
    """

    def __init__(self, total_bytes: int, began: float) -> None:
        self.total_bytes = total_bytes
        self.began = began
        self.model_seconds = self.idle_seconds = 0.0  # of all replicas
        self.units = self.scored = self.rejected = self.tokens = self.bytes = 0
        self.started: float | None = None  # when the first unit began: start-up would spoil the rate
        self.terminal = sys.stderr.isatty()
        self.ended = threading.Event()
        self.talker = threading.Thread(target=self._talk, daemon=True)

    def __enter__(self) -> "Progress":
        self.talker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.talker.join()
        if self.terminal:
            sys.stderr.write("\r\033[K")
        if self.units:
            logger.info("%s", self.line(time.monotonic()))

    def update(self, record: Mapping[str, Any]) -> None:
        """Count one committed unit."""
        if self.started is None:
            self.started = time.monotonic() - sum(record["seconds"].values())
            logger.info(
                "first pack %.1f s after the start; loading the model took %.1f s",
                record["began"] - self.began,
                record["load_seconds"],
            )
        self.units += 1
        self.scored += record["scored"]
        self.rejected += sum(record["rejected"].values())
        self.tokens += record["num_tokens"]
        self.bytes += record["source_bytes"]
        self.model_seconds += record["seconds"]["model"]
        self.idle_seconds += record["seconds"]["wait"] + record["seconds"]["pack"]
        if self.units == 1 and not self.terminal:
            logger.info("%s", self.line(time.monotonic()))

    def line(self, now: float) -> str:
        if self.started is None:
            return "waiting for the first unit"
        elapsed = max(now - self.started, 1e-9)
        done = min(self.bytes / self.total_bytes, 1.0) if self.total_bytes else 1.0
        left = elapsed * (1 - done) / done if done else 0.0
        busy = self.model_seconds / max(self.model_seconds + self.idle_seconds, 1e-9)
        return (
            f"{done:4.0%}  {self.units} units  {self.scored} scored ({self.scored / elapsed:.0f}/s)  "
            f"{self.tokens / elapsed:.0f} tokens/s  model {busy:.0%} busy  {self.rejected} rejected  ETA {_clock(left)}"
        )

    def _talk(self) -> None:
        while not self.ended.wait(_DRAW_EVERY_S if self.terminal else _LOG_EVERY_S):
            line = self.line(time.monotonic())
            if self.terminal:
                sys.stderr.write(f"\r\033[K{line}")
                sys.stderr.flush()
            else:
                logger.info("%s", line)


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


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
