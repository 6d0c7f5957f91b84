"""Files that the tasks of a step write for the tasks of the next one.

Ids and numbers are in Parquet files, from which DuckDB chooses rows. Candidates and their text are in Arrow files,
which need no decoding: each holds rows of a bounded size, sorted by prompt, of which a task reads only its range.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from armo_ray.outputs.schema import TEXT_FIELDS
from armo_ray.outputs.scores import literal
from armo_ray.storage.local_files import Opened, readable
from armo_ray.storage.store import Store

DIGITS = 8  # of a prompt id, by which rows are sorted and ranges hold them
PAST_ALL = "g"  # what follows every hexadecimal digit
_GROUP_ROWS = 8192  # small, so that a task reads few rows that it does not need
_FILTERED = ("prompt_id", "id", "source")  # columns of Parquet files by which tasks choose rows
_FILE_BYTES = 32 << 20  # of rows that a task collects before it writes an Arrow file
_BATCH_ROWS, _BATCH_BYTES = 2048, 1 << 20  # the most of Arrow files: a task reads whole batches from a server
READ_ROWS = 1024  # that a task reads at once from DuckDB: with long texts as large as a file
_TEXT = [field.name for field in TEXT_FIELDS]
_STARTS = b"starts"  # key in an Arrow file: the first digits of the first prompt of every batch


def write_parquet(scratch: str, name: str, rows: pa.Table) -> None:
    """Write rows, sorted by what tasks choose them by."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows,
        sink,
        compression="lz4",
        row_group_size=_GROUP_ROWS,
        use_dictionary=["source"],
        write_statistics=[name for name in _FILTERED if name in rows.column_names],
        write_page_checksum=True,
    )
    Store(scratch).write(f"{name}.parquet", sink.getvalue().to_pybytes(), lasting=False)


def scan_parquet(scratch: str, names: Iterable[str]) -> str:
    """SQL relation of the rows of Parquet files; columns of different types take a type that fits all."""
    files = ", ".join(literal(readable(f"{scratch}/{name}.parquet")) for name in names)
    return f"read_parquet([{files}], union_by_name = true, hive_partitioning = false)"


class PromptRange(NamedTuple):
    """The prompts whose ids are at least `low` and less than `high`, by their first digits."""

    low: str
    high: str

    @property
    def sql(self) -> str:
        """SQL condition that a prompt is in the range."""
        return f"prompt_id >= '{self.low}' AND prompt_id < '{self.high}'"


class Written(NamedTuple):
    """Arrow files that were written."""

    names: tuple[str, ...] = ()
    rows: int = 0
    text_bytes: int = 0  # of prompts and responses in UTF-8


NOTHING = Written()


def together(written: Iterable[Written]) -> Written:
    """The files of several tasks, in order."""
    names, rows, text_bytes = zip(*written, strict=True)
    return Written(tuple(chain.from_iterable(names)), sum(rows), sum(text_bytes))


def write_sorted(scratch: str, name: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Written:
    """Write rows, in any order and of any number, as Arrow files sorted by prompt."""
    store, names = Store(scratch), list[str]()
    rows = text_bytes = 0
    for table in _in_files(batches, schema):
        names.append(f"{name}-{len(names):05d}")
        _write_file(store, names[-1], table)
        rows += table.num_rows
        text_bytes += sum(_text_bytes(table[column]) for column in _TEXT if column in schema.names)
    return Written(tuple(names), rows, text_bytes)


def _in_files(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of each file; of one, without rows, if there are none."""
    waiting, size, is_first = list[pa.RecordBatch](), 0, True
    for batch in batches:
        waiting.append(batch)
        size += batch.nbytes
        if size > _FILE_BYTES:
            yield pa.Table.from_batches(waiting, schema)
            waiting, size, is_first = [], 0, False
    if waiting or is_first:
        yield pa.Table.from_batches(waiting, schema)


def _text_bytes(messages: pa.ChunkedArray) -> int:
    contents = (chunk.flatten().field("content") for chunk in messages.chunks)
    return sum(pc.sum(pc.binary_length(content)).as_py() or 0 for content in contents)


def _write_file(store: Store, name: str, rows: pa.Table) -> None:
    batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows.num_rows // max(rows.nbytes, 1)))
    batches = rows.take(_by_prompt(rows)).combine_chunks().to_batches(batch_rows)
    starts = " ".join(_digits(batch["prompt_id"][0]) for batch in batches)
    sink = pa.BufferOutputStream()
    # on a disk, rows are used where they lie
    options = pa.ipc.IpcWriteOptions(compression=None if store.local else "lz4")
    with pa.ipc.new_file(sink, rows.schema.with_metadata({_STARTS: starts}), options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    store.write(f"{name}.arrow", memoryview(sink.getvalue()), lasting=False)


def _by_prompt(rows: pa.Table) -> pa.Array:
    """The places of rows in the order of the first digits of their prompts' ids, which all have more."""
    digits = pc.utf8_slice_codeunits(rows["prompt_id"], 0, DIGITS).combine_chunks()
    if not len(digits):
        return pa.array([], pa.int64())
    numbers = np.frombuffer(digits.buffers()[2], ">u8", len(digits), digits.offset * DIGITS)
    return pa.array(np.argsort(numbers.astype(np.uint64)))  # four times as fast as sorting text


def _digits(prompt_id: pa.StringScalar) -> str:
    return str(prompt_id.as_py()[:DIGITS])


def read_column(scratch: str, names: Iterable[str], column: str) -> pa.RecordBatchReader:
    """One column of text of all rows of Arrow files, which are read one after the other."""

    def batches() -> Iterator[pa.RecordBatch]:
        for name in names:
            file = _open(f"{scratch}/{name}.arrow")
            place = pa.ipc.open_file(file).schema.get_field_index(column)
            reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=[place]))
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number).replace_schema_metadata(None)

    return pa.RecordBatchReader.from_batches(pa.schema([(column, pa.string())]), batches())


def read_sorted(
    con: duckdb.DuckDBPyConnection, scratch: str, names: Iterable[str], within: PromptRange
) -> pa.Table:
    """The rows of some prompts in Arrow files, with `row`, their place in the table.

    Columns whose types differ between files take a type that fits all.
    """
    by_schema: dict[pa.Schema, list[pa.Table]] = {}
    for name in names:
        table = _read_file(f"{scratch}/{name}.arrow", within)
        by_schema.setdefault(table.schema, []).append(table)
    tables = [pa.concat_tables(of_schema) for of_schema in by_schema.values()]
    rows = tables[0] if len(tables) == 1 else _united(con, tables)
    return rows.append_column("row", pa.array(np.arange(rows.num_rows)))


def _united(con: duckdb.DuckDBPyConnection, tables: Sequence[pa.Table]) -> pa.Table:
    views = [f"united_{number}" for number in range(len(tables))]
    for view, table in zip(views, tables, strict=True):
        con.register(view, table)
    rows = con.sql(" UNION ALL BY NAME ".join(f"FROM {view}" for view in views)).to_arrow_table()
    for view in views:
        con.unregister(view)
    return rows


def _read_file(uri: str, within: PromptRange) -> pa.Table:
    reader = pa.ipc.open_file(_open(uri))
    starts = reader.schema.metadata[_STARTS].decode().split()
    first, end = max(bisect_left(starts, within.low) - 1, 0), bisect_left(starts, within.high)
    batches = [_slice(reader.get_batch(number), within) for number in range(first, end)]
    return pa.Table.from_batches(batches, reader.schema).replace_schema_metadata(None)


def _open(uri: str) -> pa.NativeFile:
    return pa.memory_map(uri) if "://" not in uri else pa.PythonFile(Opened().open(uri), "r")


def _slice(batch: pa.RecordBatch, within: PromptRange) -> pa.RecordBatch:
    prompts = batch["prompt_id"]
    low, high = (bisect_left(prompts, edge, key=_digits) for edge in within)
    if not any(map(_is_deep, batch.schema.types)):
        return batch.slice(low, high - low)
    return batch.take(pa.array(np.arange(low, high)))


def _is_deep(kind: pa.DataType) -> bool:
    """Whether a type is a struct that has more than plain fields: of these DuckDB reads no slices."""
    return pa.types.is_struct(kind) and any(pa.types.is_nested(field.type) for field in kind)
