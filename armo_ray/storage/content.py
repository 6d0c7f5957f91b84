"""Whether a shard whose modification time changed still holds the rows that were scored.

A file that is copied back byte for byte is the same shard. Commit records hold a digest of the bytes that their rows
were read from; it is compared with the digest of the shard's present bytes. If the records have no digest, because an
earlier version wrote them, the shard counts as changed.
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
    """The same shards in the same order; one that differs only in its modification time gets its committed identity.

    Such a shard keeps its present identity in `stamp`: its units are named as before, and the file is opened as it
    is now. All other shards, including changed ones, are returned as they are.

    Args:
        store: an output.
        shards: the shards as they are now.
        committed: ids of the units committed to the output. One record of each shard is read, and all of them if
            the shard's identity differs from that record's.
        columns: the columns that the run reads from a Parquet shard.

    Raises OSError or RuntimeError if a record or a shard cannot be read.
    """
    timed = {shard.hash for shard in shards if shard.is_timed}
    units: dict[str, list[str]] = {}
    for unit in sorted(unit for unit in committed if unit[:16] in timed):
        units.setdefault(unit[:16], []).append(unit)
    committed_before = [
        (shard, units[shard.hash]) for shard in shards if shard.is_timed and shard.hash in units
    ]
    compared: list[Shard] = in_parallel(
        lambda pair: _settle(store, pair[0], pair[1], columns), committed_before
    )
    same = {shard.uri: shard for shard in compared if shard.stamp is not None}
    if same:
        logger.info(
            "%d shard%s only in modification time from what was scored, and %s not scored again",
            len(same),
            "s differ" if len(same) > 1 else " differs",
            "are" if len(same) > 1 else "is",
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
    """Whether digests can decide if a shard is the same: every record has one, and the size has not changed."""
    identities = {record.identity for record in records}
    return (
        shard.is_timed
        and len(identities) == 1
        and identities.pop().partition("-")[0] == str(shard.size)
        and all(record.content for record in records)
    )


def is_unchanged(shard: Shard, records: Sequence[CommitRecord], columns: Sequence[str]) -> bool:
    """Whether a shard is the one its records were made from: by identity or, if that differs, by content."""
    return all(record.identity == shard.identity for record in records) or same_content(
        shard, records, columns
    )


def same_content(shard: Shard, records: Sequence[CommitRecord], columns: Sequence[str]) -> bool:
    """Whether a shard still holds the bytes that its committed units were read from. Reads the shard.

    Args:
        shard: the shard as it is now.
        records: its commit records, all of the same identity.
        columns: the columns that were read, for a Parquet shard.

    Raises OSError if the shard changes while it is read, and whatever the storage raises.
    """
    records = [unit for record in records for unit in record.ranges()]
    if not records or not _could_be(shard, records):
        return False
    ordered = sorted(records, key=lambda record: (record.first_row, record.num_rows))
    digests = _of_row_groups(shard, ordered, columns) if shard.is_parquet else _of_lines(shard, ordered)
    is_same = all(now == record.content for now, record in zip(digests, ordered, strict=True))
    check_read(shard)
    return is_same


def _of_row_groups(
    shard: Shard, records: Sequence[CommitRecord], columns: Sequence[str]
) -> Iterator[str | None]:
    """The present digest of each unit, None if the row groups no longer hold its rows. Each row group is read once."""
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
    """The present digest of each unit, None if lines of it are missing or lines follow what was the last unit."""
    lines = read_lines(shard)
    line = next(lines, None)
    following = 0
    for record in records:
        # skip the lines of units without a record; between a unit and the next one there are no other lines
        while record.ordinal != following and line is not None and line[0] < record.first_row:
            line = next(lines, None)
        following = record.ordinal + 1
        content, left = digest.LineDigest(record.first_row), record.num_rows
        while line is not None and left:
            content.add(line[0], text_of(line[1]))
            line, left = next(lines, None), left - 1
        yield content.hex if not left and record.last == (line is None) else None
