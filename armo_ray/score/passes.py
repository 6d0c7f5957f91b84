"""Passes over the uncommitted units of an input until all are committed. The caller supplies the work."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from armo_ray.storage import commits, resume
from armo_ray.storage.records import CommitRecord
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span

# an NFS client may cache for so long that a new file does not exist
_UNSEEN_S = 60.0


@dataclass(frozen=True)
class Committed:
    """A worker's report of a unit that it committed."""

    record: CommitRecord
    source_bytes: int  # estimated bytes of the shard that the unit covers
    host: str


def begin(store: Store, standing: resume.Standing) -> None:
    """Delete what the run makes obsolete: the manifest, and the commits to be dropped."""
    store.delete(commits.SUCCESS)
    resume.drop(store, standing.dropped)


def commit_all(
    store: Store,
    fingerprint: str,
    spans: Sequence[Span],
    left: list[Span],
    work: Callable[[list[Span]], Iterable[Committed]],
    work_alone: Callable[[list[Span]], Iterable[Committed]],
) -> None:
    """Commit every uncommitted unit of the spans.

    Args:
        spans: the whole spans of the input.
        left: the spans with only the units that are not committed.
        work: commits as many units of the given spans as it can, and yields each as it is committed.
        work_alone: commits the first unit of each span alone, rejecting rows that kill the worker, or raises.

    Raises RuntimeError if a unit that was reported as committed is not in the output.
    """
    shards = {span.shard for span in left}
    spans = [span for span in spans if span.shard in shards]
    while left:
        for unit in work(left):
            see(store, unit)
        left = resume.to_do(store, spans, fingerprint)
        if left:
            for unit in work_alone(left):
                see(store, unit)
            left = resume.to_do(store, spans, fingerprint)


def see(store: Store, committed: Committed, patience: float = _UNSEEN_S) -> None:
    """Raises RuntimeError if a unit that a worker reported as committed is not in the output as seen from this node.

    Waits up to `patience` seconds for it. Checks only a disk: an object store is the same from every node.
    """
    unit = committed.record.unit
    path = store.path(f"{commits.COMMITS}/{unit}.json")
    if not store.local or os.path.exists(path):
        return
    deadline = time.monotonic() + patience
    while unit not in commits.list_commits(store):
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{committed.host} committed unit {unit}, but this node does not see {path}: "
                f"the output is not the same directory on every node. Use a URI such as s3://, or a directory that all "
                f"nodes mount"
            )
        time.sleep(0.5)
