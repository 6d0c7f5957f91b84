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
PAST_ALL = "g"  # after every digit
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
    names: list[str] = []
    waiting: list[pa.RecordBatch] = []
    rows = size = text_bytes = 0

    def write() -> None:
        names.append(f"{name}-{len(names):05d}")
        _write_file(Store(scratch), names[-1], pa.Table.from_batches(waiting, schema))
        waiting.clear()

    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        text_bytes += sum(_text_bytes(batch[name]) for name in _TEXT if name in schema.names)
        if size > _FILE_BYTES:
            write()
            size = 0
    if waiting or not names:
        write()
    return Written(tuple(names), rows, text_bytes)


def _text_bytes(messages: pa.ListArray) -> int:
    return int(pc.sum(pc.binary_length(messages.flatten().field("content"))).as_py() or 0)


def _write_file(store: Store, name: str, rows: pa.Table) -> None:
    batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows.num_rows // max(rows.nbytes, 1)))
    batches = rows.take(_by_prompt(rows)).combine_chunks().to_batches(batch_rows)
    starts = " ".join(_digits(batch["prompt_id"], 0) for batch in batches)
    sink = pa.BufferOutputStream()
    # on a disk, rows are used where they lie
    options = pa.ipc.IpcWriteOptions(compression=None if store.local else "lz4")
    with pa.ipc.new_file(sink, rows.schema.with_metadata({_STARTS: starts}), options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    store.write(f"{name}.arrow", memoryview(sink.getvalue()), lasting=False)


def _by_prompt(rows: pa.Table) -> pa.Array:
    """The places of rows in the order of the first digits of their prompts."""
    digits = pc.utf8_slice_codeunits(rows["prompt_id"], 0, DIGITS).combine_chunks()
    if not len(digits):
        return pa.array([], pa.int64())
    numbers = np.frombuffer(digits.buffers()[2], ">u8", len(digits), digits.offset * DIGITS)
    return pa.array(np.argsort(numbers.astype(np.uint64)))  # four times as fast as sorting text


def _digits(prompts: pa.Array, place: int) -> str:
    return str(prompts[place].as_py()[:DIGITS])


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


def read_sorted(scratch: str, names: Iterable[str], within: PromptRange) -> pa.Table:
    """The rows of some prompts in Arrow files, with `row`, their place in the table.

    Columns whose types differ between files take a type that fits all.
    """
    by_schema: dict[pa.Schema, list[pa.Table]] = {}
    for name in names:
        table = _read_file(f"{scratch}/{name}.arrow", within)
        by_schema.setdefault(table.schema, []).append(table)
    tables = list(map(pa.concat_tables, by_schema.values()))
    rows = tables[0] if len(tables) == 1 else _unioned(tables)
    return rows.append_column("row", pa.array(np.arange(rows.num_rows)))


def _unioned(tables: Sequence[pa.Table]) -> pa.Table:
    with duckdb.connect() as con:
        for number, table in enumerate(tables):
            con.register(f"t{number}", table)
        return con.sql(
            " UNION ALL BY NAME ".join(f"FROM t{number}" for number in range(len(tables)))
        ).to_arrow_table()


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
    low, high = (
        bisect_left(range(len(prompts)), edge, key=lambda place: _digits(prompts, place)) for edge in within
    )
    return batch.slice(low, high - low)
