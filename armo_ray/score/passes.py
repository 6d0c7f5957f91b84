"""Passes over what is left of an input, until all of it is committed. What carries out the work is given."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from armo_ray.storage import commits, resume
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span

Record = Mapping[str, Any]
# of a directory on NFS a client may believe for so long that a new file is not there
_UNSEEN_S = 60.0


def begin(store: Store, found: resume.Standing) -> None:
    """Take away what a run makes untrue: the manifest, and the commits that are to be dropped."""
    store.delete(commits.SUCCESS)
    resume.drop(store, found.dropped)


def commit_all(
    store: Store,
    fingerprint: str,
    spans: Sequence[Span],
    left: list[Span],
    work: Callable[[list[Span]], Iterable[Record]],
    work_alone: Callable[[Span], Record],
) -> None:
    """Commit every unit of the spans that is left.

    Args:
        spans: whole ones, of which `left` holds the units that are not committed.
        work: commits what it can of some spans, and yields the record of each unit as it is committed.
        work_alone: commits the first unit of a span by itself, bad rows rejected, or raises.

    Raises RuntimeError where a unit that was reported as committed is not in the output.
    """
    shards = {span.shard for span in left}
    spans = [span for span in spans if span.shard in shards]
    while left:
        for record in work(left):
            see(store, record)
        left = resume.to_do(store, spans, fingerprint)
        for span in left:
            see(store, work_alone(span))
        if left:
            left = resume.to_do(store, spans, fingerprint)


def see(store: Store, record: Record, patience: float = _UNSEEN_S) -> None:
    """Raise RuntimeError where a unit that a worker says it committed is not in the output, as seen from here.

    Looks on a disk only, for up to `patience` seconds: an object store is the same everywhere.
    """
    path = store.path(f"{commits.COMMITS}/{record['unit']}.json")
    if not store.local or os.path.exists(path):
        return
    deadline = time.monotonic() + patience
    while record["unit"] not in commits.list_commits(store):
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{record['host']} committed unit {record['unit']}, but {path} is not there as seen from here: "
                f"the output is not the same place on every node. Use a URI such as s3://, or a directory that all "
                f"nodes mount"
            )
        time.sleep(0.5)
