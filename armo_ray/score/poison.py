"""Units that failed in the graph: the rows that kill a worker are found by bisection and rejected.

Every attempt runs in an actor, which it may kill; the driver only counts the attempts that fail. A row is `poison`
if it killed or failed the worker twice when scored alone. If many rows do, the fault is not in the rows.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from armo_ray.score.job import ModelJob
from armo_ray.score.passes import Committed
from armo_ray.score.replicas import Pool, isolated
from armo_ray.storage.shards import check_unchanged
from armo_ray.storage.units import Span

logger = logging.getLogger(__name__)

FANOUT = 8  # ranges that a failed range is cut into; not 2, because each failure may load the model again
MOST_POISON = 16  # poison rows that a unit may have


class _Worker:
    """An actor that is replaced when a call kills it."""

    def __init__(self, job: ModelJob, pool: Pool) -> None:
        self.task = (job, pool)
        self.actor = isolated(*self.task)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the actor. Raises RayError if the method raises or the actor dies."""
        try:
            return ray.get(getattr(self.actor, method).remote(*arguments))
        except RayTaskError as error:
            if isinstance(error.cause, OSError):  # a changed shard or a full disk: not the fault of a row
                raise RuntimeError(str(error.cause)) from None
            raise
        except RayError:
            self.actor = isolated(*self.task)
            raise

    def failure(self, span: Span, start: int, stop: int) -> str | None:
        """Why the rows [start, stop) of a unit cannot be scored together, or None if they can."""
        try:
            self.call("attempt", span, start, stop)
        except RayError as error:
            self.call("count", span)  # raises if the new actor cannot read its unit: not the fault of a row
            lines = str(error).strip().splitlines() or [""]
            return f"{type(error).__name__}: {lines[-1]:.300}"
        return None


def isolate(spans: Iterable[Span], job: ModelJob, pool: Pool) -> Iterator[Committed]:
    """Commit the first uncommitted unit of every span, with its poison rows rejected. The model is loaded once.

    Raises RayError if reading a unit kills the actor, RuntimeError if too many of its rows do, and OSError if its
    shard changed.
    """
    worker = None
    for span in spans:
        check_unchanged(span.shard)
        worker = worker or _Worker(job, pool)
        yield _commit_alone(span, worker)
    if worker:  # an error ends the run, and all its actors
        ray.kill(worker.actor)


def _commit_alone(span: Span, worker: _Worker) -> Committed:
    poison = find_poison(partial(worker.failure, span), worker.call("count", span), span.shard.uri)
    committed: Committed = worker.call("finish", span, poison)
    logger.warning(
        "%s: the unit of rows %d+%d failed; it was committed alone, with %d rows rejected as poison",
        span.shard.uri,
        committed.record.first_row,
        committed.record.num_rows,
        len(poison),
    )
    return committed


def find_poison(failure: Callable[[int, int], str | None], count: int, where: str) -> dict[int, str]:
    """The indices of the rows that fail twice when scored alone, and why.

    Args:
        failure: returns why the rows [start, stop) cannot be scored together, or None if they can.
        count: the number of rows.
        where: the URI of their shard, for messages.

    Raises:
        RuntimeError: more than MOST_POISON rows fail.
    """
    poison: dict[int, str] = {}
    ranges = [(0, count)] if count else []
    while ranges:
        start, stop = ranges.pop()
        if failure(start, stop) is None:
            continue
        if stop - start > 1:
            step = -(-(stop - start) // FANOUT)
            ranges += [(at, min(at + step, stop)) for at in range(start, stop, step)]
        elif reason := failure(start, stop):
            poison[start] = reason
            logger.warning("%s: row %d of the unit is poison: %s", where, start, reason)
        if len(poison) > MOST_POISON:
            raise RuntimeError(
                f"{where}: more than {MOST_POISON} rows of one unit kill or fail the worker, the last "
                f"with {reason}: the fault is not in the rows. The unit is not committed"
            )
    return poison
