"""The columns of the shards of an input, from Parquet footers and the first JSONL rows, before any work."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray.errors import ConfigError
from armo_ray.storage import readers
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.shards import DAMAGE, Shard, open_shard
from armo_ray.storage.units import Footer, read_footer
from armo_ray.text.column_roles import how_to_read
from armo_ray.text.input_columns import COLUMN_ROLE_OF, InputColumns, is_empty, joined, of_rows, of_schema
from armo_ray.text.layouts import Layout

logger = logging.getLogger(__name__)

_SAMPLE_ROWS = 1000  # of the first JSONL shard
_OTHER_ROWS = 50  # of each of some other JSONL shards
_OTHER_SHARDS = 15
_FOOTER_BYTES = 128 << 20  # of footers kept in memory for cutting; the rest are read again
_MOST_GROUPS = 64  # row groups to read if statistics do not show whether a column is empty


@dataclass(frozen=True)
class Sample:
    """What the survey read of a shard: the schema if it is Parquet, the first rows if it is JSONL.

    `holds` covers the columns of a Parquet shard that may hold text of a conversation: whether each row group holds
    anything, None if its statistics do not show it.
    """

    shard: Shard
    found: InputColumns
    rows: tuple[dict[str, Any], ...] = ()
    schema: pa.Schema | None = None
    num_rows: int = 0
    holds: Mapping[str, Sequence[bool | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Survey:
    """All readable Parquet shards and some JSONL shards, sorted by URI."""

    samples: list[Sample]
    footers: Mapping[str, Footer]  # by shard URI; as many as memory allows

    @property
    def found(self) -> InputColumns:
        return joined({id(sample.found): sample.found for sample in self.samples}.values())


def survey(shards: Sequence[Shard]) -> Survey:
    """Survey the shards. Raises ConfigError if none has a row, or if one has two columns of the same name."""
    reader = _FooterReader()
    results = in_parallel(reader.read, [shard for shard in shards if shard.is_parquet])
    samples = [sample for sample in results if sample is not None]
    failures = [f"{uri}: {footer.error}" for uri, footer in reader.footers.items() if footer.error]
    samples += _lined([shard for shard in shards if not shard.is_parquet], failures)
    if not any(sample.found.names for sample in samples):
        unreadable = f"; {len(failures)} cannot be read, the first: {failures[0]}" if failures else ""
        raise ConfigError(
            f"input: none of {len(shards)} shards has a row from which to detect the layout{unreadable}"
        )
    samples.sort(key=lambda sample: sample.shard.uri)
    return Survey(samples, reader.footers)


class _FooterReader:
    """Reads footers and keeps as many as memory allows. Equal schemas are kept once."""

    def __init__(self) -> None:
        self.footers: dict[str, Footer] = {}
        self.size = 0
        self.schemas: dict[pa.Schema, tuple[pa.Schema, InputColumns]] = {}

    def read(self, shard: Shard) -> Sample | None:
        footer = read_footer(shard)
        metadata, schema = footer.metadata, footer.schema
        self.size += metadata.serialized_size if metadata is not None else 0
        if self.size <= _FOOTER_BYTES:
            self.footers[shard.uri] = footer
        if metadata is None or schema is None:
            return None
        _check_names(shard, schema)
        schema, found = self.schemas.setdefault(schema, (schema, of_schema(schema)))
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        texts = [name for name in COLUMN_ROLE_OF.keys() & found.names if _is_textual(schema.field(name).type)]
        holds = {name: [_by_statistics(group, name) for group in groups] for name in texts}
        return Sample(shard, found, schema=schema, num_rows=metadata.num_rows, holds=holds)


def _check_names(shard: Shard, schema: pa.Schema) -> None:
    if repeated := [name for name, count in Counter(schema.names).items() if count > 1]:
        raise ConfigError(
            f"{shard.uri}: it has {schema.names.count(repeated[0])} columns {repeated[0]}; rename one of them"
        )


def _lined(shards: Sequence[Shard], failures: list[str]) -> list[Sample]:
    """Samples of the first JSONL shard that has rows, and of some JSONL shards after it."""
    for at, shard in enumerate(shards):
        if (first := _first_rows(shard, _SAMPLE_ROWS, failures)).rows:
            others = shards[at + 1 :]
            chosen = others[:: -(-len(others) // _OTHER_SHARDS) or 1]
            return [first, *in_parallel(lambda other: _first_rows(other, _OTHER_ROWS, []), chosen)]
    return []


def _first_rows(shard: Shard, count: int, failures: list[str]) -> Sample:
    try:
        _, _, rows = readers.sample(shard, count)
    except DAMAGE as error:
        failures.append(f"{shard.uri}: {error}")
        rows = []
    if not rows and shard.size and (odd := _oddity_of(shard)):
        failures.append(f"{shard.uri}: {odd}")
        logger.warning("%s: no row can be read: %s", shard.uri, odd)
    return Sample(shard, of_rows(rows), rows=tuple(rows))


def _oddity_of(shard: Shard) -> str | None:
    try:
        return readers.oddity_of(shard)
    except DAMAGE as error:
        return str(error)


def check(seen: Survey, layout: Layout) -> None:
    """Check the shards against the layout.

    Raises ConfigError if a Parquet shard lacks a column that the layout needs, or if a column that may hold text of a
    conversation is not empty and is neither read nor ignored by an option.
    """
    limit = _MOST_GROUPS
    for sample in seen.samples:
        missing = layout.lacking(sample.found.names)
        if sample.num_rows and missing:
            raise ConfigError(
                f"{sample.shard.uri}: no column {', '.join(missing)}, which the layout {layout.title} needs; it has "
                f"{', '.join(sorted(sample.found.names))}. Leave out the shard, or name its columns with --column"
            )
        for name in sorted(layout.watched & sample.found.names):
            unsure = [i for i, holds in enumerate(sample.holds.get(name, ())) if holds is None]
            if _holds_anything(sample, name, unsure[:limit]) or len(unsure) > limit:
                raise ConfigError(
                    f"{sample.shard.uri}: column {name} is not read by the layout {layout.title}: {how_to_read(name)}"
                )
            limit -= len(unsure)


def unread(seen: Survey, layout: Layout, kept: Iterable[str]) -> list[str]:
    """The columns that are neither read nor kept."""
    return sorted(seen.found.names - {*layout.sources, *kept})


def _holds_anything(sample: Sample, name: str, unsure: Sequence[int]) -> bool:
    """Whether a column holds anything but null and empty text; reads the row groups in `unsure` if needed."""
    if sample.schema is None:
        return any(not is_empty(row.get(name)) for row in sample.rows)
    return True in sample.holds.get(name, ()) or any(_read_any(sample.shard, name, i) for i in unsure)


def _is_textual(kind: pa.DataType) -> bool:
    """Whether a type holds text or bytes at any depth."""
    if pa.types.is_nested(kind):
        return any(_is_textual(kind.field(i).type) for i in range(kind.num_fields))
    if pa.types.is_dictionary(kind):
        return _is_textual(kind.value_type)
    return not (
        pa.types.is_primitive(kind)
        or pa.types.is_null(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def _by_statistics(group: pq.RowGroupMetaData, name: str) -> bool | None:
    """Whether a column of a row group holds anything, from its statistics; None if they do not show it."""
    holds: list[bool | None] = []  # by leaf column
    for i in range(group.num_columns):
        column = group.column(i)
        if column.path_in_schema != name and not column.path_in_schema.startswith(f"{name}."):
            continue
        stats = column.statistics
        if stats is None or not stats.has_null_count:
            holds.append(None)
        elif stats.null_count == column.num_values or group.num_rows == 0:
            holds.append(False)
        elif not stats.has_min_max:
            holds.append(None)
        elif stats.min == stats.max or not isinstance(stats.min, str | bytes):
            holds.append(not is_empty(stats.min))
        else:
            holds.append(None if is_empty(stats.min) and is_empty(stats.max) else True)
    return True if True in holds else None if None in holds else False


def _read_any(shard: Shard, name: str, group: int) -> bool:
    try:
        with open_shard(shard) as source:
            column = pq.ParquetFile(source).read_row_group(group, columns=[name]).column(0)
            return any(not is_empty(value) for chunk in column.chunks for value in chunk.to_pylist())
    except DAMAGE:
        return True
