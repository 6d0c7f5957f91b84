"""The progress of a run: a display on a terminal or else a log line every 30 s, and Prometheus metrics."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

from armo_ray.score.passes import Committed
from armo_ray.score.progress.counts import Counts
from armo_ray.score.progress.metrics import Exporter
from armo_ray.score.progress.periodic import every
from armo_ray.score.progress.text import line

__all__ = ["Counts", "Progress", "every"]

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 30.0
_EXPORT_EVERY_S = 2.0  # takes 0.4 ms
_WAIT_S = 5.0  # at the end, for the count of replicas: if Ray's head is gone it never returns


class Progress:
    """Counts committed units as they are reported, and displays the counts.

    Args:
        total_bytes: bytes of the input that are left to score.
        began: start of the run, in seconds since 1970.
        tags: values of the metrics' tags, by name.
        replicas: returns how many replicas are loaded and how many were lost; called from another thread.
        of_endpoint: whether a judge gives the scores: then requests and cost are shown, not what a model does.
    """

    def __init__(
        self,
        total_bytes: int,
        began: float,
        tags: Mapping[str, str],
        replicas: Callable[[], tuple[int, int]],
        of_endpoint: bool = False,
    ) -> None:
        self.counts = Counts(total_bytes, of_endpoint=of_endpoint)
        self.began = began
        self.tags = tags
        self.replicas = replicas
        self.pool: tuple[int | None, int] = (None, 0)  # last result of `replicas`
        self.exporter: Exporter | None = None
        self.terminal = sys.stderr.isatty() and os.environ.get("TERM") not in (None, "dumb")
        self.outlets = ExitStack()

    def __enter__(self) -> "Progress":
        with ExitStack() as stack:
            for outlet in self._outlets():
                stack.enter_context(outlet)
            self.outlets = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.outlets.close()
        if self.terminal and self.counts.units:
            self._log()

    def update(self, unit: Committed, isolated: bool = False) -> None:
        """Count one committed unit; `isolated` if it had to be scored row by row."""
        first = not self.counts.units
        self.counts = self.counts.plus(unit, time.monotonic())
        if isolated:
            self.counts = replace(self.counts, isolated=self.counts.isolated + 1)
        if first and (timing := unit.record.timing) and timing.load_seconds:
            logger.info(
                "first pack %.1f s after the start; loading the model took %.1f s",
                timing.began - self.began,
                timing.load_seconds,
            )

    def snapshot(self) -> Counts:
        """The present counts, with the last known number of replicas."""
        up, lost = self.pool
        return replace(self.counts, replicas=up, restarts=lost)

    def _outlets(self) -> Iterator[AbstractContextManager[None]]:
        yield every(_EXPORT_EVERY_S, "exporting metrics", self._export)  # ends last, with the final counts
        yield every(_EXPORT_EVERY_S, "counting replicas", self._count_replicas, _WAIT_S)
        if self.terminal:
            from armo_ray.score.progress import terminal

            yield terminal.shown(lambda: terminal.render(self.snapshot(), time.monotonic()))
        else:
            yield every(_LOG_EVERY_S, "logging progress", self._log)

    def _count_replicas(self) -> None:
        self.pool = self.replicas()

    def _export(self) -> None:
        self.exporter = self.exporter or Exporter(self.tags)
        self.exporter.export(self.snapshot(), time.monotonic())

    def _log(self) -> None:
        logger.info("%s", line(self.snapshot(), time.monotonic()))
