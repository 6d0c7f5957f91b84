"""Reads the text of scored candidates again from the source shards."""

from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from armo_ray.errors import ConfigError
from armo_ray.outputs.partitions import in_partitions
from armo_ray.outputs.schema import TEXT_FIELDS
from armo_ray.outputs.scores import Scores
from armo_ray.storage import commits, content
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.parts import SCORES
from armo_ray.storage.readers import BadRow
from armo_ray.storage.records import CommitRecord
from armo_ray.storage.retries import describe_error
from armo_ray.storage.shard_rows import NumberedRows, read_shard
from armo_ray.storage.shards import Shard, stat_shard
from armo_ray.storage.store import Store
from armo_ray.text.conversations import candidates_of
from armo_ray.text.labels import columns_read
from armo_ray.text.layouts import Layout, layout_and_reading
from armo_ray.text.messages import Reading

TEXT = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("source_row", pa.int64()),
        pa.field("candidate", pa.int32()),
        *TEXT_FIELDS,
    ]
)
_DIFFERENT = (
    "{uri}: its text is needed, but {output} was scored from another state or layout of it than the other outputs: "
    "leave one of them out, or score again with --keep-text"
)
_CHANGED = (
    "{uri}: the text of its candidates is needed, but the shard {state}. Put it back as it was, or score it again "
    "with --keep-text"
)


@dataclass(frozen=True)
class Source:
    """A shard as it was when it was scored, and how it was read."""

    shard: Shard
    layout: Layout
    reading: Reading
    scored: int  # number of scored candidates


class _Scored(NamedTuple):
    """How one output was scored from a shard."""

    output: str
    identity: str
    layout: tuple[Layout, Reading]
    columns: list[str]  # columns of the shard that were read
    records: list[CommitRecord]


def find_sources(scores: Scores, only: Set[str] | None = None) -> dict[str, Source]:
    """The source shards of all scores, or those of them in `only`, by URI.

    Raises ConfigError if the text of a shard is no longer what was scored: it is gone, its content changed, or outputs
    were scored from different states or layouts of it.
    """
    taken: dict[str, list[_Scored]] = {}
    scored: Counter[str] = Counter()
    for output, run in zip(scores.outputs, scores.runs, strict=True):
        layout, columns = layout_and_reading(run.identity), columns_read(run.identity)
        groups: dict[tuple[str, str], list[CommitRecord]] = {}
        for record in commits.read_commits(Store(output), run=run):
            if only is not None and record.source not in only:
                continue
            if not any(in_partitions(part.path, scores.partitions) for part in record.parts_in(SCORES)):
                continue
            groups.setdefault((record.source, record.identity), []).append(record)
            scored[record.source] += record.scored
        for (uri, identity), records in groups.items():
            taken.setdefault(uri, []).append(_Scored(output, identity, layout, columns, records))
    taken = {uri: those for uri, those in taken.items() if scored[uri]}
    shards: list[Shard] = in_parallel(lambda uri: _as_scored(uri, taken[uri]), taken)
    return {
        uri: Source(shard, *taken[uri][0].layout, scored[uri])
        for uri, shard in zip(taken, shards, strict=True)
    }


def _as_scored(uri: str, taken: list[_Scored]) -> Shard:
    """The shard as it is now. Raises ConfigError if an output was scored from other content or in another layout."""
    for other in taken[1:]:
        if other.layout != taken[0].layout:
            raise ConfigError(_DIFFERENT.format(uri=uri, output=other.output))
    shard = _stat(uri)
    if shard is None:
        raise ConfigError(_CHANGED.format(uri=uri, state="is gone"))
    for one in taken:
        if not content.is_unchanged(shard, one.records, one.columns):
            if others := [other.output for other in taken if other.identity != one.identity]:
                raise ConfigError(_DIFFERENT.format(uri=uri, output=others[0]))
            state = f"changed since (was {one.identity}, is {shard.identity})"
            raise ConfigError(_CHANGED.format(uri=uri, state=state))
    return shard


def _stat(uri: str) -> Shard | None:
    try:
        return stat_shard(uri)
    except OSError as error:
        raise ConfigError(f"{uri}: cannot be looked up: {describe_error(error)}") from error


def read_text(source: Source, rows: set[int]) -> Iterator[pa.Table]:
    """The candidates of the given rows of a shard, in tables of the schema TEXT, in the shard's order.

    Raises RuntimeError if a row can no longer be read.
    """
    for batch in read_shard(source.shard, source.layout.sources, source.layout.candidate_columns, rows):
        yield _texts(source, batch)


def _texts(source: Source, rows: NumberedRows) -> pa.Table:
    entries = []
    for number, row in rows:
        if isinstance(row, BadRow):
            raise RuntimeError(f"{source.shard.uri} row {number}: can no longer be read: {row.detail}")
        for candidate in candidates_of(row, source.layout, source.reading):
            if candidate.reason is None:
                entries.append((source.shard.uri, number, candidate.index, *candidate.shown()))
    columns = list(zip(*entries, strict=True)) or [()] * len(TEXT)
    return pa.table([pa.array(column, f.type) for column, f in zip(columns, TEXT, strict=True)], schema=TEXT)
