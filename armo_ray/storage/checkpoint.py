"""`_commits.parquet`: the commit records as one table, so that a reader need not open hundreds of thousands of files.

The files in `_commits/` stay the truth. A row holds its record and the stamp that a listing gave the file: its size and
modification time, or its ETag. A row is used only while a listing still shows that stamp, so one whose file was deleted
or written again counts for nothing, whoever did it. A checkpoint that is missing, damaged or of another run is ignored.
"""

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from armo_ray.storage.records import CommitRecord, Extra, PartEntry
from armo_ray.storage.stamps import Stamps
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)

CHECKPOINT = "_commits.parquet"

_ENTRY = pa.struct(
    [
        ("path", pa.string()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("digest", pa.string()),
        ("extra", pa.string()),
    ]
)
_MERGED = pa.struct(
    [
        ("unit", pa.string()),
        ("first_row", pa.int64()),
        ("num_rows", pa.int64()),
        ("content", pa.string()),
    ]
)
# named as in a record; `extra` is JSON of what this version does not know
SCHEMA = pa.schema(
    [
        ("unit", pa.string()),
        ("stamp", pa.string()),
        ("source", pa.string()),
        ("identity", pa.string()),
        ("ordinal", pa.int64()),
        ("first_row", pa.int64()),
        ("num_rows", pa.int64()),
        ("last", pa.bool_()),
        ("candidates", pa.int64()),
        ("scored", pa.int64()),
        ("rejected", pa.map_(pa.string(), pa.int64())),
        ("num_tokens", pa.int64()),
        ("computed_tokens", pa.int64()),
        ("parts", pa.list_(_ENTRY)),
        ("content", pa.string()),
        ("merged", pa.list_(_MERGED)),
        ("run_fingerprint", pa.string()),
        ("seconds", pa.map_(pa.string(), pa.float64())),
        ("began", pa.float64()),
        ("load_seconds", pa.float64()),
        ("num_packs", pa.int64()),
        ("packed_tokens", pa.int64()),
        ("pack_capacity", pa.int64()),
        ("flops", pa.int64()),
        ("peak_flops", pa.float64()),
        ("token_budget", pa.int64()),
        ("committed_at", pa.string()),
        ("checksum", pa.string()),
        ("extra", pa.string()),
    ]
)
_EARLIER = SCHEMA.remove(SCHEMA.get_field_index("merged"))  # of an earlier version
# of few distinct values: a table holds each once
_SHARED = ["source", "identity", "run_fingerprint"]
_REPEATED = [*_SHARED, "rejected.key_value.key", "seconds.key_value.key"]
_RUN, _DIGEST, _PARTS = b"run_fingerprint", b"digest", b"parts"  # keys of the file's metadata
_BATCH = 1 << 14  # rows held as objects, or as whole rows, at once
_LAST = 8  # bytes after a footer: its length, and the mark of Parquet
_BLANK = b"-" * 32  # in the place of the digest while it is computed


class PartSums(NamedTuple):
    """How many parts there are, and the sum of the digests of a line for each, modulo 2^128, in any order."""

    number: int
    digest: int

    def plus(self, other: "PartSums") -> "PartSums":
        return PartSums(self.number + other.number, (self.digest + other.digest) % (1 << 128))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read."""

    content: bytes
    run_fingerprint: str | None
    sums: PartSums | None = None  # of the parts of all rows; None: an earlier version wrote it

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of all rows."""
        file = self._file()
        return _filled(file.read(_present(file, columns)), columns)

    def batches(self, columns: Sequence[str] = SCHEMA.names) -> Iterator[pa.Table]:
        """Some columns, some rows at a time, in order."""
        schema, file = pa.schema([SCHEMA.field(name) for name in columns]), self._file()
        for batch in file.iter_batches(_BATCH, columns=_present(file, columns)):
            yield _filled(pa.Table.from_batches([batch]), columns).cast(schema)

    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(pa.BufferReader(self.content), read_dictionary=_SHARED)


def _present(file: pq.ParquetFile, columns: Sequence[str]) -> list[str]:
    """Those of the columns that a file has, and always one, as rows are counted by it."""
    return [name for name in dict.fromkeys(("unit", *columns)) if name in file.schema_arrow.names]


def _filled(rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The columns; of nulls those that an earlier version did not write."""
    for name in columns:
        if name not in rows.column_names:
            rows = rows.append_column(SCHEMA.field(name), pa.nulls(rows.num_rows, SCHEMA.field(name).type))
    return rows.select(columns)


def find(store: Store) -> Checkpoint | None:
    """The checkpoint of an output, or None if it has none. Raises ValueError that says what is wrong with it."""
    try:
        content = store.read(CHECKPOINT)
    except FileNotFoundError:
        return None
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        schema, metadata = file.schema_arrow, file.metadata.metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"cannot be read: {error}") from None
    if not schema.equals(SCHEMA) and not schema.equals(_EARLIER):
        raise ValueError("its columns are not those of this version")
    digest = metadata.get(_DIGEST, b"")
    if len(digest) != len(_BLANK) or digest != _digest(content, content.rindex(digest)):
        raise ValueError("its content does not match its digest")
    run, sums = metadata.get(_RUN), metadata.get(_PARTS)
    return Checkpoint(
        content,
        None if run is None else run.decode("utf-8", "replace"),
        None if sums is None else PartSums(*json.loads(sums)),
    )


def find_usable(store: Store, run_fingerprint: str | None) -> Checkpoint | None:
    """The checkpoint, or None, with a line in the log, if it is damaged or not of the run, where one is given."""
    try:
        found = find(store)
    except ValueError as error:
        fault = str(error)
    else:
        if found is None or run_fingerprint in (None, found.run_fingerprint):
            return found
        fault = "belongs to another run"
    logger.info("%s/%s: ignored: %s; a run that ends writes it again", store.uri, CHECKPOINT, fault)
    return None


def write(
    store: Store, batches: Iterable[pa.Table], run_fingerprint: str | None, sums: PartSums | None = None
) -> None:
    """Write a checkpoint of all rows, each batch as a row group; `sums` are those of the parts of all rows."""
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink, SCHEMA, compression="zstd", use_dictionary=_REPEATED, write_statistics=False
    ) as writer:
        for batch in batches:
            writer.write_table(batch)
        metadata = {_DIGEST: _BLANK}
        if run_fingerprint is not None:
            metadata[_RUN] = run_fingerprint.encode()
        if sums is not None:
            metadata[_PARTS] = json.dumps(sums).encode()
        writer.add_key_value_metadata(metadata)
    with sink.getbuffer() as content:
        footer = _LAST + int.from_bytes(content[-_LAST : 4 - _LAST], "little")
        at = len(content) - footer + bytes(content[-footer:]).rindex(_BLANK)
        content[at : at + len(_BLANK)] = _digest(content, at)
    store.write(CHECKPOINT, sink.getvalue())


def records_of(rows: pa.Table) -> Iterator[CommitRecord]:
    """The records that rows of a checkpoint hold."""
    for start in range(0, rows.num_rows, _BATCH):
        yield from map(_record, rows.slice(start, _BATCH).to_pylist(maps_as_pydicts="strict"))


def exact(records: Sequence[CommitRecord], stamps: Mapping[str, str]) -> Iterator[pa.Table]:
    """Rows for the records, in batches; without a record that a row would not hold to the letter: its file is read."""
    for start in range(0, len(records), _BATCH):
        rows = [_row(record, stamps[record.unit]) for record in records[start : start + _BATCH]]
        yield pa.Table.from_pylist([row for row in rows if _fits(row, SCHEMA)], SCHEMA)


def _fits(values: Mapping[str, Any], fields: Iterable[pa.Field]) -> bool:
    return all(_is_held(values.get(field.name), field.type) for field in fields)


def _is_held(value: Any, kind: pa.DataType) -> bool:
    """Whether a column of this type gives the value back as it is: 1 is not 1.0."""
    if value is None or pa.types.is_string(kind):
        return value is None or type(value) is str
    if pa.types.is_integer(kind):
        return type(value) is int and abs(value) < 1 << 63
    if pa.types.is_map(kind):
        return all(_is_held(item, kind.item_type) for item in value.values())
    if pa.types.is_list(kind):
        return all(_fits(item, kind.value_type) for item in value)
    return type(value) is (float if pa.types.is_floating(kind) else bool)


def entries_of(record: CommitRecord) -> list[dict[str, Any]]:
    """The parts of a record as elements of `parts`."""
    return [_split(part.to_dict(), part.extra) for part in record.parts]


def part_of(entry: dict[str, Any]) -> PartEntry:
    """The part that an element of `parts` describes."""
    return PartEntry.from_dict(_joined(entry))


def _row(record: CommitRecord, stamp: str) -> dict[str, Any]:
    values = record.to_dict() | {"content": record.content}
    return _split(values, record.extra) | {"stamp": stamp, "parts": entries_of(record)}


def _split(values: Mapping[str, Any], extra: Extra) -> dict[str, Any]:
    """The values, with those that this version does not know as JSON."""
    own = {name: value for name, value in values.items() if name not in dict(extra)}
    return own | {"extra": extra_of(extra)}


def extra_of(extra: Extra) -> str | None:
    """What the column `extra` holds."""
    return json.dumps(dict(extra)) if extra else None


def _record(row: dict[str, Any]) -> CommitRecord:
    del row["stamp"]
    content, peak_flops = row.pop("content"), row.pop("peak_flops")
    values = _joined(row) | {"parts": [_joined(part) for part in row["parts"]]}
    if content != "":
        values["content"] = content
    if row["num_packs"] is not None:
        values["peak_flops"] = peak_flops
    return CommitRecord.from_dict(values)


def _joined(row: dict[str, Any]) -> dict[str, Any]:
    extra: dict[str, Any] = json.loads(row.pop("extra") or "{}")
    return {name: value for name, value in row.items() if value is not None} | extra


def _digest(content: bytes | memoryview, at: int) -> bytes:
    """32 hex digits of all bytes of a file but for those `at` which it holds its digest."""
    digest = hashlib.blake2b(digest_size=16)
    whole = memoryview(content)
    for piece in (whole[:at], _BLANK, whole[at + len(_BLANK) :]):
        digest.update(piece)
    return digest.hexdigest().encode()


def sum_parts(batches: Iterable[pa.Table]) -> PartSums:
    """The sums over the parts of rows, some of them at a time."""
    sums = PartSums(0, 0)
    for rows in batches:
        parts = pc.list_flatten(rows["parts"])
        text = [
            pc.struct_field(parts, name).cast(pa.string()) for name in ("path", "rows", "bytes", "digest")
        ]
        lines = pc.binary_join_element_wise(*text, "\t", null_handling="replace")
        sums = sums.plus(PartSums(len(lines), sum(map(_number_of, lines.to_pylist()))))
    return sums


def _number_of(line: str) -> int:
    return int.from_bytes(hashlib.blake2b(line.encode(), digest_size=16).digest(), "big")


def compared(checkpoint: Checkpoint, listed: Stamps) -> tuple[pa.BooleanArray, pa.BooleanArray]:
    """Whether each row holds its record as a listing shows it, and whether each unit listed is in no such row."""
    rows = checkpoint.table(["unit", "stamp"])
    place = pc.index_in(rows["unit"].combine_chunks(), listed.units)  # null: its record is gone
    same = pc.equal(listed.stamps.take(place), rows["stamp"].combine_chunks())
    is_current = pc.fill_null(same, False)
    is_missing = np.ones(len(listed.units), bool)
    is_missing[place.filter(is_current).to_numpy()] = False
    return is_current, pa.array(is_missing)
