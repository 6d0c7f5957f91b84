"""Passes over what is left of an input, until all of it is committed. The caller says how the work is done."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from armo_ray.storage import commits, resume
from armo_ray.storage.records import CommitRecord
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span

# an NFS client may believe for so long that a new file in a directory is not there
_UNSEEN_S = 60.0


@dataclass(frozen=True)
class Committed:
    """What a worker reports of a unit that it committed."""

    record: CommitRecord
    source_bytes: int  # about how much of the shard the unit stands for
    host: str


def begin(store: Store, standing: resume.Standing) -> None:
    """Delete what the run makes untrue: the manifest, and the commits that are to be dropped."""
    store.delete(commits.SUCCESS)
    resume.drop(store, standing.dropped)


def commit_all(
    store: Store,
    fingerprint: str,
    spans: Sequence[Span],
    left: list[Span],
    work: Callable[[list[Span]], Iterable[Committed]],
    work_alone: Callable[[Span], Committed],
) -> None:
    """Commit every unit of the spans that is left.

    Args:
        spans: whole ones, of which `left` holds the units that are not committed.
        work: commits what it can of some spans, and reports each unit as it is committed.
        work_alone: commits the first unit of a span by itself, bad rows rejected, or raises.

    Raises RuntimeError if a unit that was reported as committed is not in the output.
    """
    shards = {span.shard for span in left}
    spans = [span for span in spans if span.shard in shards]
    while left:
        for unit in work(left):
            see(store, unit)
        left = resume.to_do(store, spans, fingerprint)
        for span in left:
            see(store, work_alone(span))
        if left:
            left = resume.to_do(store, spans, fingerprint)


def see(store: Store, committed: Committed, patience: float = _UNSEEN_S) -> None:
    """Raise RuntimeError if a unit that a worker says it committed is not in the output, as seen from here.

    Looks on a disk only, for up to `patience` seconds: an object store is the same everywhere.
    """
    unit = committed.record.unit
    path = store.path(f"{commits.COMMITS}/{unit}.json")
    if not store.local or os.path.exists(path):
        return
    deadline = time.monotonic() + patience
    while unit not in commits.list_commits(store):
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{committed.host} committed unit {unit}, but {path} is not there as seen from here: "
                f"the output is not the same place on every node. Use a URI such as s3://, or a directory that all "
                f"nodes mount"
            )
        time.sleep(0.5)
