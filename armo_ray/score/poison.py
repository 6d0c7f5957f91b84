"""Units that the graph could not do: the rows that kill a worker are found by bisection and rejected.

Every attempt runs in an actor that an attempt may kill; the driver only counts which did. A row is `poison`
when it killed, or failed, the worker twice on its own. Where many do, the fault is not in the rows.
"""

import logging
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from armo_ray.score.job import Job
from armo_ray.score.passes import Committed
from armo_ray.score.replicas import Pool, isolated
from armo_ray.storage.shards import check_unchanged
from armo_ray.storage.units import Span

logger = logging.getLogger(__name__)

PARTS = 8  # that a failed range of rows is cut into: a new actor has to load the model
MOST_POISON = 16  # rows of a unit


class _Worker:
    """An actor that is made anew when a call killed it."""

    def __init__(self, span: Span, job: Job, pool: Pool) -> None:
        self.task = (span, job, pool)
        self.actor = isolated(*self.task)

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of the actor returns. Raises RayError where it raised or died."""
        try:
            return ray.get(getattr(self.actor, method).remote(*arguments))
        except RayTaskError as error:
            if isinstance(error.cause, OSError):  # a shard that changed, a full disk: no row is to blame
                raise RuntimeError(str(error.cause)) from None
            raise
        except RayError:
            self.actor = isolated(*self.task)
            raise

    def failure(self, start: int, stop: int) -> str | None:
        """Why these rows cannot be scored together, None where they can."""
        try:
            self.call("attempt", start, stop)
        except RayError as error:
            self.call("count")  # a new actor that cannot read its unit is no row's fault: this raises
            lines = str(error).strip().splitlines() or [""]
            return f"{type(error).__name__}: {lines[-1]:.300}"
        return None


def isolate(span: Span, job: Job, pool: Pool) -> Committed:
    """Commit the first unit of a span that is to be done, its poison rejected.

    Raises RayError if reading the unit kills the actor, RuntimeError if too many of its rows do, and OSError if its
    shard is no longer the file that was planned.
    """
    check_unchanged(span.shard)
    worker = _Worker(span, job, pool)
    poison = find_poison(worker.failure, worker.call("count"), span.shard.uri)
    committed: Committed = worker.call("finish", poison)
    logger.warning(
        "%s: the unit of rows %d+%d failed; alone it is committed, with %d rows rejected as poison",
        span.shard.uri,
        committed.record.first_row,
        committed.record.num_rows,
        len(poison),
    )
    ray.kill(worker.actor)
    return committed


def find_poison(failure: Callable[[int, int], str | None], count: int, where: str) -> dict[int, str]:
    """The places, of `count` rows, that fail on their own, twice, and why.

    Args:
        failure: why the rows [start, stop) cannot be scored together, None where they can.
        count: of the rows.
        where: they are, for messages.

    Raises:
        RuntimeError: more than MOST_POISON rows do.
    """
    poison: dict[int, str] = {}
    ranges = [(0, count)] if count else []
    while ranges:
        start, stop = ranges.pop()
        if failure(start, stop) is None:
            continue
        if stop - start > 1:
            step = -(-(stop - start) // PARTS)
            ranges += [(at, min(at + step, stop)) for at in range(start, stop, step)]
        elif why := failure(start, stop):
            poison[start] = why
            logger.warning("%s: row %d of the unit is poison: %s", where, start, why)
        if len(poison) > MOST_POISON:
            raise RuntimeError(
                f"{where}: more than {MOST_POISON} rows of one unit kill or fail the worker, the last "
                f"with {why}: the fault is not in the rows. Nothing of the unit is committed"
            )
    return poison
