"""Cutting shards into units of work.

A unit is about `unit_rows` candidates, at most 64 MiB of text, and is committed in one transaction. Its id is a hash
of the shard's URI, the shard's identity (size and ETag or modification time), its range in the shard and the
fingerprint of the run; it does not depend on a rank or a position in a listing. A Parquet shard is cut by its footer.
JSONL has no index, so one task reads a JSONL shard from start to end and cuts it as it goes, always at the same lines.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from armo_ray.errors import ConfigError
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.retries import describe_error
from armo_ray.storage.shards import DAMAGE, Shard, open_shard

UNIT_BYTES = 64 << 20
_UNITS_PER_TASK = 8  # opening a shard and reading its footer again costs little compared with eight units
_FEW_BITS = 6  # per value: most writers limit a dictionary to 1 MB, so more than 64 texts in it are short
UNREADABLE = "-unreadable"  # ends the id of a unit that stands for a whole shard and holds no scores


@dataclass(frozen=True)
class Unit:
    """A range of rows of a shard.

    In a Parquet shard: `num_rows` rows from `first_row` on, in row groups [group_start, group_stop). In a JSONL shard:
    consecutive lines, known only once they were read.
    """

    id: str
    ordinal: int  # place among the units of the shard
    first_row: int = 0
    num_rows: int = 0
    group_start: int = 0
    group_stop: int = 0
    skip_rows: int = 0  # rows of the first row group that belong to earlier units
    last: bool = False  # whether it is the last unit of its shard
    candidates: int = 0  # estimated from the footer of a Parquet shard
    source_bytes: int = 0  # estimated bytes of the shard that it covers


@dataclass(frozen=True)
class Span:
    """The work of one read task: `units` of a Parquet shard, or all of a JSONL shard except the ordinals in `done`."""

    shard: Shard
    units: tuple[Unit, ...] = ()
    done: frozenset[int] = frozenset()
    error: str | None = None  # why the shard cannot be read

    @property
    def source_bytes(self) -> int:
        """Estimated bytes of the shard that the span covers; of JSONL all of them."""
        return sum(unit.source_bytes for unit in self.units) or self.shard.size


def count_units(spans: Sequence[Span]) -> int | None:
    """The units of spans; None if they cannot be counted before their shards are read, as of JSONL."""
    return sum(len(span.units) for span in spans) if all(span.units for span in spans) else None


_Range = tuple[int, int, int, int, int]  # first and last row group, rows to skip, rows, candidates


class Footer(NamedTuple):
    """The metadata and schema of a Parquet shard, or the error if they cannot be read."""

    metadata: pq.FileMetaData | None
    schema: pa.Schema | None
    error: str | None = None


def unit_id(shard: Shard, fingerprint: str, range_name: str) -> str:
    """32 hex digits: the 16 of the shard, then 16 of the unit's range in it."""
    text = json.dumps([shard.uri, shard.identity, fingerprint, range_name])
    return shard.hash + hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def cut(
    shards: list[Shard],
    fingerprint: str,
    unit_rows: int,
    candidate_columns: Mapping[str, bool],
    footers: Mapping[str, Footer] | None = None,
) -> list[Span]:
    """A span with all units for each shard. Reads footers on a few threads.

    Args:
        unit_rows: candidates in a unit, roughly.
        candidate_columns: the columns that hold candidates, and whether each holds a list of them.
        footers: footers that were read already, by shard URI.

    Raises ConfigError if a shard cannot be opened.
    """
    footers = footers or {}

    def of(shard: Shard) -> Span:
        if not shard.is_parquet:
            return Span(shard)
        footer = footers.get(shard.uri) or read_footer(shard)
        if footer.metadata is None:
            name = unit_id(shard, fingerprint, "unreadable") + UNREADABLE
            unit = Unit(name, 0, last=True, source_bytes=shard.size)
            return Span(shard, (unit,), error=footer.error)
        pieces = _ranges(shard, footer.metadata, unit_rows, candidate_columns)
        return Span(shard, tuple(_units(shard, footer.metadata.num_rows, fingerprint, pieces)))

    spans: list[Span] = in_parallel(of, shards)
    return spans


def read_footer(shard: Shard) -> Footer:
    """The footer of a Parquet shard. Raises ConfigError if the shard cannot be opened."""
    try:
        source = open_shard(shard)
    except OSError as error:
        raise ConfigError(f"{shard.uri}: cannot be opened: {describe_error(error)}") from error
    try:
        with source:
            file = pq.ParquetFile(source)
            return Footer(file.metadata, file.schema_arrow)
    except DAMAGE as error:
        source.raise_failure()
        return Footer(None, None, f"{type(error).__name__}: {error}")


def _units(shard: Shard, total: int, fingerprint: str, pieces: Iterable[_Range]) -> list[Unit]:
    units: list[Unit] = []
    first_row = 0
    for start, stop, skip, num_rows, candidates in pieces:
        unit = Unit(
            id=unit_id(shard, fingerprint, f"{start}-{stop}+{skip}:{num_rows}"),
            ordinal=len(units),
            first_row=first_row,
            num_rows=num_rows,
            group_start=start,
            group_stop=stop,
            skip_rows=skip,
            candidates=candidates,
            source_bytes=shard.size * num_rows // total,
        )
        units.append(unit)
        first_row += num_rows
    if not units:  # an empty shard is one unit, so that it can be committed
        return [Unit(unit_id(shard, fingerprint, "empty"), 0, last=True)]
    return [*units[:-1], replace(units[-1], last=True)]


def _ranges(
    shard: Shard, footer: pq.FileMetaData, unit_rows: int, candidate_columns: Mapping[str, bool]
) -> Iterator[_Range]:
    """The range of each unit of a shard.

    Row groups are joined up to the size of a unit; a row group larger than a unit is cut by rows.
    """
    start = rows = candidates = size = 0
    for i in range(footer.num_row_groups):
        group = footer.row_group(i)
        n, nbytes = _weigh(group, candidate_columns)
        nbytes += sum(_repeated_bytes(shard, footer, i, k) for k in _repeating(group, unit_rows))
        if rows and (candidates + n > unit_rows or size + nbytes > UNIT_BYTES):
            yield start, i, 0, rows, candidates
            start, rows, candidates, size = i, 0, 0, 0
        pieces = max(-(-n // unit_rows), -(-nbytes // UNIT_BYTES))
        if pieces > 1:
            step = -(-group.num_rows // pieces)
            for skip in range(0, group.num_rows, step):
                piece = min(step, group.num_rows - skip)
                yield i, i + 1, skip, piece, n * (skip + piece) // group.num_rows - n * skip // group.num_rows
            start = i + 1
        else:
            rows, candidates, size = rows + group.num_rows, candidates + n, size + nbytes
    if rows:
        yield start, footer.num_row_groups, 0, rows, candidates


def _weigh(group: pq.RowGroupMetaData, candidate_columns: Mapping[str, bool]) -> tuple[int, int]:
    """The estimated candidates of a row group, and the decoded bytes of its columns if no text repeats."""
    candidates: dict[str, int] = {}
    size = 0
    for i in range(group.num_columns):
        column = group.column(i)
        size += column.total_uncompressed_size
        name, *nested = column.path_in_schema.split(".")
        if name in candidate_columns:
            listed = candidate_columns[name] or len(nested) == 2  # name.list.element: a list of texts
            candidates[name] = max(candidates.get(name, 0), column.num_values if listed else group.num_rows)
    return sum(candidates.values()) or group.num_rows, size


def _repeating(group: pq.RowGroupMetaData, unit_rows: int) -> Iterator[int]:
    """The columns that may consist of a few long texts, and would decode to more than a unit's bytes.

    Their dictionary is too large to be repeated in every row of a unit, and their indices take only a few bits per row.
    """
    for k in range(group.num_columns):
        column = group.column(k)
        if column.physical_type == "BYTE_ARRAY" and column.has_dictionary_page:
            indices = column.total_compressed_size - (column.data_page_offset - column.dictionary_page_offset)
            few = 8 * indices < _FEW_BITS * column.num_values
            if few and min(group.num_rows, unit_rows) * column.total_uncompressed_size > UNIT_BYTES:
                yield k


def _repeated_bytes(shard: Shard, footer: pq.FileMetaData, group: int, column: int) -> int:
    """The decoded bytes of a column's texts beyond those in the footer, which counts texts in a dictionary once."""
    path = footer.schema.column(column).path
    with open_shard(shard) as source:
        try:
            file = pq.ParquetFile(source, metadata=footer, read_dictionary=[path])
            chunks = file.read_row_group(group, columns=[path]).column(0).chunks
        except DAMAGE:  # reading the units will report it
            source.raise_failure()
            return 0
    total = sum(map(_encoded_bytes, chunks))
    return max(0, total - int(footer.row_group(group).column(column).total_uncompressed_size))


def _encoded_bytes(array: pa.Array) -> int:
    """The bytes of the dictionary-encoded texts in an array, with repetitions."""
    if pa.types.is_dictionary(array.type):
        return int(pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0)
    if pa.types.is_struct(array.type):
        return sum(map(_encoded_bytes, array.flatten()))
    return _encoded_bytes(array.flatten()) if pa.types.is_nested(array.type) else 0


def spread(spans: list[Span]) -> list[Span]:
    """Cut spans into spans of a few units, so that many tasks read one large Parquet shard.

    The units of one row group stay together, so that it is decoded once.
    """
    pieces: list[Span] = []
    for span in spans:
        tasks: list[list[Unit]] = [[]]
        for unit in span.units:
            new_group = tasks[-1] and tasks[-1][-1].group_start != unit.group_start
            if new_group and len(tasks[-1]) >= _UNITS_PER_TASK:
                tasks.append([])
            tasks[-1].append(unit)
        pieces += [replace(span, units=tuple(units)) for units in tasks]
    return pieces
