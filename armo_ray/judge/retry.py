"""Asking again about candidates that have no verdict."""

import logging
from collections.abc import Collection

from armo_ray.endpoint.journal import Journal
from armo_ray.judge.job import JudgeJob
from armo_ray.storage import commits, lock, resume
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)


def set_aside(job: JudgeJob, reasons: Collection[str]) -> None:
    """Drop the commits of units with candidates that were rejected for these reasons, and the replies at fault.

    Their other replies stay in the journals, and are not asked for again.
    """
    store = Store(job.output)
    with lock.held(store):
        units = [
            record.unit for record in commits.read_log(store).records() if set(record.rejected) & set(reasons)
        ]
        logger.info("%d units have candidates to ask about again", len(units))
        if not units:
            return
        store.delete(commits.SUCCESS)
        for unit in units:
            journal = Journal(store, unit)
            journal.retry(reasons)
            journal.close()
        resume.drop(store, units)
