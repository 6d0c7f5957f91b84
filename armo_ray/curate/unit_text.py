"""Adds text from the source shards to the rows of units, as the columns that `armo-ray score --keep-text` writes.

`armo_ray.curate.candidate_text` gathers text by prompt; here it is needed in the order of the shard, so each unit
takes its text from one pass over the shard, and no scratch files are necessary.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from armo_ray.outputs.schema import TEXT_FIELDS
from armo_ray.outputs.text import TEXT, Source, read_text
from armo_ray.storage.records import CommitRecord

Unit = tuple[
    CommitRecord, list[tuple[str, pa.Table]]
]  # its record, and the path and rows of each part of scores


def with_text(units: Iterable[Unit], sources: Mapping[str, Source]) -> Iterator[Unit]:
    """The units, sorted by shard and row, with the columns `prompt` and `response`.

    Holds the rows of all units of a shard, and the text of one unit. Raises RuntimeError if a shard no longer has the
    text of a row.
    """
    for uri, group in groupby(units, key=lambda unit: unit[0].source):
        held = list(group)
        rows = {row for _, tables in held for _, table in tables for row in table["source_row"].to_pylist()}
        texts = read_text(sources[uri], rows) if rows else iter(())
        left = TEXT.empty_table()
        for record, tables in held:
            last = max((row for _, t in tables for row in t["source_row"].to_pylist()), default=-1)
            read = _read_up_to(last, left, texts)
            text = read.filter(pc.less_equal(read["source_row"], last))
            yield record, [(path, _joined(table, text, uri)) for path, table in tables]
            left = read.slice(text.num_rows)


def _read_up_to(last: int, left: pa.Table, texts: Iterator[pa.Table]) -> pa.Table:
    """The text left over from the unit before, and more of it until it includes row `last` of the shard."""
    tables = [left]
    while tables[-1].num_rows == 0 or tables[-1]["source_row"][-1].as_py() < last:
        more = next(texts, None)
        if more is None:
            break
        tables.append(more)
    return pa.concat_tables(tables)


def _joined(table: pa.Table, text: pa.Table, uri: str) -> pa.Table:
    keys = zip(text["source_row"].to_pylist(), text["candidate"].to_pylist(), strict=True)
    place_of = {key: place for place, key in enumerate(keys)}
    needed = list(zip(table["source_row"].to_pylist(), table["candidate"].to_pylist(), strict=True))
    if missing := [key for key in needed if key not in place_of]:
        row, candidate = missing[0]
        raise RuntimeError(f"{uri}: the text of candidate {candidate} of row {row} is no longer there")
    rows = text.take(pa.array([place_of[key] for key in needed], pa.int64()))
    for field in TEXT_FIELDS:
        table = table.append_column(field, rows[field.name])
    return table
