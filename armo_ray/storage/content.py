"""Whether a shard that has another modification time holds what was scored of it.

A file that is copied back byte for byte is the same shard: commit records hold a digest of what their rows were read
from, and those of the shard as it is now are compared with them. Records of versions before digests hold none: then
the shard counts as changed.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import pyarrow.parquet as pq

from armo_ray.storage import commits, digest
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.readers import read_lines, text_of
from armo_ray.storage.records import CommitRecord
from armo_ray.storage.shards import DAMAGE, Shard, check_read, open_shard
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)


def settled(
    store: Store, shards: Sequence[Shard], committed: Iterable[str], columns: Sequence[str]
) -> list[Shard]:
    """The shards, in their order; one that differs only in time has the identity that it is committed under.

    Such a shard has its present identity as its `stamp`: its units are named as before, and it is opened as it is.
    All others, also those that changed, are returned as they are.

    Args:
        store: an output.
        shards: as they are found now.
        committed: the ids of units that are committed to the output; of each shard's only one record is read where
            its identity is still the same, and all of them where it is not.
        columns: those that the run reads of a Parquet shard.

    Raises OSError or RuntimeError where a record or a shard cannot be read.
    """
    units: dict[str, list[str]] = {}
    for unit in sorted(committed):
        units.setdefault(unit[:16], []).append(unit)
    timed = [(shard, units[shard.hash]) for shard in shards if shard.is_timed and shard.hash in units]
    compared: list[Shard] = in_parallel(lambda pair: _settle(store, pair[0], pair[1], columns), timed)
    same = {shard.uri: shard for shard in compared if shard.stamp is not None}
    if same:
        logger.info(
            "%d shard%s only in modification time from what was scored, and %s done again",
            len(same),
            "s differ" if len(same) > 1 else " differs",
            "are not" if len(same) > 1 else "is not",
        )
    return [same.get(shard.uri, shard) for shard in shards]


def _settle(store: Store, shard: Shard, units: list[str], columns: Sequence[str]) -> Shard:
    first = commits.read_record(store, units[0])
    if first.identity == shard.identity or not _could_be(shard, [first]):
        return shard
    records = commits.read_commits(store, units)
    same = same_content(shard, records, columns)
    return replace(shard, identity=first.identity, stamp=shard.identity) if same else shard


def _could_be(shard: Shard, records: Sequence[CommitRecord]) -> bool:
    """Whether only digests can tell: the records have them, and the size is the same."""
    identities = {record.identity for record in records}
    return (
        shard.is_timed
        and len(identities) == 1
        and identities.pop().partition("-")[0] == str(shard.size)
        and all(record.content for record in records)
    )


def is_unchanged(shard: Shard, records: Sequence[CommitRecord], columns: Sequence[str]) -> bool:
    """Whether a shard is the one that all records are of: by its identity or, where that differs, by content."""
    return all(record.identity == shard.identity for record in records) or same_content(
        shard, records, columns
    )


def same_content(shard: Shard, records: Sequence[CommitRecord], columns: Sequence[str]) -> bool:
    """Whether all that was committed of a shard is what the shard holds now, by reading it.

    Args:
        shard: as it is now.
        records: commit records of it, made under one other identity.
        columns: those that were read, of a Parquet shard.

    Raises OSError where the shard changes meanwhile, and what the storage raises.
    """
    if not records or not _could_be(shard, records):
        return False
    ordered = sorted(records, key=lambda record: (record.first_row, record.num_rows))
    digests = _of_row_groups(shard, ordered, columns) if shard.is_parquet else _of_lines(shard, ordered)
    same = all(now == record.content for now, record in zip(digests, ordered, strict=True))
    check_read(shard)
    return same


def _of_row_groups(
    shard: Shard, records: Sequence[CommitRecord], columns: Sequence[str]
) -> Iterator[str | None]:
    """The digest of each unit now, None where its rows are no row groups' any more; each row group is read once."""
    with open_shard(shard) as source:
        try:
            file = pq.ParquetFile(source)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            starts = [0, *accumulate(sizes)]
            before: tuple[list[int], str] = ([], "")
            for record in records:
                start, stop = record.first_row, record.first_row + record.num_rows
                if stop > starts[-1] or record.last != (stop == starts[-1]):
                    yield None
                    continue
                groups = [i for i, at in enumerate(starts[:-1]) if at < stop and at + sizes[i] > start]
                if before[0] != groups or not groups:
                    before = groups, digest.of_row_groups(source, file, groups, columns)
                yield before[1]
        except DAMAGE:
            source.raise_failure()
            yield from (None for _ in records)


def _of_lines(shard: Shard, records: Sequence[CommitRecord]) -> Iterator[str | None]:
    """The digest of each unit now, None where its lines are not all there, or are followed by more than they were."""
    lines = read_lines(shard)
    line = next(lines, None)
    following = 0
    for record in records:
        # lines of units that are not among the records are passed over; there are none between a unit and the next
        while record.ordinal != following and line is not None and line[0] < record.first_row:
            line = next(lines, None)
        following = record.ordinal + 1
        content, left = digest.LineDigest(record.first_row), record.num_rows
        while line is not None and left:
            content.add(line[0], text_of(line[1]))
            line, left = next(lines, None), left - 1
        yield content.hex if not left and record.last == (line is None) else None
