"""Asking again about candidates that have no verdict."""

import logging
from collections.abc import Collection, Iterable

from armo_ray.endpoint.journal import Journal
from armo_ray.judge.job import JudgeJob
from armo_ray.storage import commits, lock, resume
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span

logger = logging.getLogger(__name__)


def set_aside(job: JudgeJob, spans: Iterable[Span], reasons: Collection[str]) -> None:
    """Drop the commits of units of this input with candidates that were rejected for these reasons.

    The replies at fault are set aside. The others stay in the journals, and are not asked for again.
    """
    store, shards = Store(job.output), {span.shard.uri for span in spans}
    with lock.held(store, "judge"):
        units = [
            record.unit
            for record in commits.read_log(store).records()
            if record.source in shards and set(record.rejected) & set(reasons)
        ]
        logger.info("%d units have candidates to ask about again", len(units))
        if not units:
            return
        store.delete(commits.SUCCESS)
        for unit in units:
            journal = Journal(store, unit)
            journal.set_aside(reasons)
            journal.flush()
        resume.drop(store, units)
