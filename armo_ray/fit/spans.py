"""The pass over hidden states: spans of units, read in parallel, and their results taken in the order of the units.

A span is a run of units with at least `rows` rows, so that its bounds depend on the data alone: both engines, and a
command that goes on after it was stopped, add the same numbers in the same order and get the same bits.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from armo_ray.errors import ConfigError
from armo_ray.fit.work import MARK, read_back
from armo_ray.outputs.hidden import Hidden, HiddenOutputs, HiddenUnit, read_hidden
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)

Arrays = TypeVar("Arrays", bound=tuple[Any, ...])
TaskRunner = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
Result = TypeVar("Result")
# all that fits read besides hidden states: not the text and whatever else was kept
COLUMNS = ("source", "source_row", "role", "num_response_tokens", "labels")
ROWS = 32_768  # of a span, if there are no more than that in the sums
BATCH = 8  # spans that a Ray cluster does at once


class Span(NamedTuple):
    """Units that one task reads."""

    number: int
    units: tuple[HiddenUnit, ...]

    @property
    def rows(self) -> int:
        """As the manifests count them."""
        return sum(rows_of(unit) for unit in self.units)


def rows_of(unit: HiddenUnit) -> int:
    """Rows of a unit, as its manifest counts them."""
    return sum(part.rows for part in unit.rows)


def spans_of(hidden: HiddenOutputs, rows: int | None) -> list[Span]:
    """The units of all outputs in spans of at least so many rows, but for the last one.

    By default, a span has as many bytes of hidden states as the sums of five folds.
    """
    if rows is None:
        rows = max(ROWS, 5 * 8 * hidden.size // 2)
    spans: list[Span] = []
    units: list[HiddenUnit] = []
    count = 0
    for unit in hidden.units:
        units.append(unit)
        count += rows_of(unit)
        if count >= rows:
            spans.append(Span(len(spans), tuple(units)))
            units, count = [], 0
    return [*spans, Span(len(spans), tuple(units))] if units else spans


def tables_of(span: Span, gates: bool = False) -> Iterator[Hidden]:
    """The rows of every unit of a span, in order; the next unit is read while one is worked on."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(read_hidden, unit, gates, COLUMNS) for unit in span.units[:2]]
        for unit in [*span.units[2:], *[None] * len(waiting)]:
            hidden = waiting.pop(0).result()
            if unit is not None:
                waiting.append(pool.submit(read_hidden, unit, gates, COLUMNS))
            yield hidden


def joined(parts: Sequence[Arrays]) -> Arrays:
    """Named tuples of arrays of one kind, at least one, as a single one: array after array, along the first axis."""
    columns: Any = (np.concatenate(values) for values in zip(*parts, strict=True))
    return type(parts[0])(*columns)


def here(function: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
    """Apply a function to every task in this process, one after the other."""
    return [function(task) for task in tasks]


@contextmanager
def engine(kind: str, work: str) -> Iterator[TaskRunner]:
    """Yields what applies a function to every task, here or on Ray, and returns the results in order.

    work: folder in which tasks write files, which every machine of a cluster must see.
    """
    if kind == "local":
        yield here
        return
    from armo_ray.cluster.connect import connected, run_tasks

    with connected():
        yield lambda function, tasks: run_tasks(InFolder(work, function), tasks)


@dataclass(frozen=True)
class InFolder:
    """A function that is applied only where the work folder is the one of this fit; else a ConfigError is returned."""

    work: str
    function: Callable[[Any], Any]

    def __call__(self, task: Any) -> Any:
        try:
            read_back(Store(self.work), MARK)
        except ConfigError as error:
            return error
        return self.function(task)


@dataclass(frozen=True)
class _Guarded:
    """A function of a span that returns a ConfigError instead of raising it: Ray would make another error of it."""

    function: Callable[[Span], Any]

    def __call__(self, span: Span) -> Any:
        try:
            return self.function(span)
        except ConfigError as error:
            return error


def in_order(
    what: str,
    function: Callable[[Span], Result],
    spans: Sequence[Span],
    run_tasks: TaskRunner,
    batch_spans: int = BATCH,
) -> Iterator[list[tuple[Span, Result]]]:
    """Apply a function to spans, a batch at a time, with a line in the log for each batch. Raises its ConfigError."""
    total, done, began = sum(span.rows for span in spans), 0, time.monotonic()
    for start in range(0, len(spans), batch_spans):
        batch = spans[start : start + batch_spans]
        results = run_tasks(_Guarded(function), batch)
        for result in results:
            if isinstance(result, ConfigError):
                raise result
        done += sum(span.rows for span in batch)
        rate = done / max(time.monotonic() - began, 1e-9)
        logger.info("%s: %s of %s rows, %.0f rows/s", what, f"{done:,}", f"{total:,}", rate)
        yield list(zip(batch, results, strict=True))
