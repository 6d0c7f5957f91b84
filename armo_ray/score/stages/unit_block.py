"""A unit of work as a table of one row, with its candidates in list columns.

Every task takes one block and returns one block, so that a task that Ray replays returns the same again.
"""

import json
import pickle
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from armo_ray.outputs.schema import REJECTS
from armo_ray.storage.readers import BadRow, Row
from armo_ray.storage.shards import Shard
from armo_ray.storage.units import Unit

Ids = npt.NDArray[np.int32]
MODEL_COLUMNS = ("prompts", "group", "responses", "contests")  # that only the replica needs
NO_SHARD = Shard("", 0, "", ())
FAILURES = "failures"  # column of a judge: reason and detail of every candidate, null where it has a score


@dataclass
class Header:
    """The data of a unit besides its rows, pickled in the column `header`."""

    shard: Shard
    unit: Unit
    candidates: int
    seconds: dict[str, float]
    num_tokens: int = 0
    computed_tokens: int = 0
    num_packs: int = 0
    packed_tokens: int = 0  # computed tokens without padding
    pack_capacity: int = 0  # tokens that the packs had room for
    flops: int = 0  # of the packed tokens
    peak_flops: float | None = None  # of the replica's devices, per second; None if unknown
    token_budget: int = 0  # of the replica: as configured, or less if memory was short
    load_seconds: float = 0.0  # for the replica to load the model, the same in all its units
    began: float = 0.0  # start of scoring, in seconds since 1970
    content: str | None = None  # digest of the bytes that its rows were read from
    extra: tuple[tuple[str, Any], ...] = ()  # further entries of its commit record

    def to_array(self) -> pa.Array:
        return pa.array([pickle.dumps(self)])

    @classmethod
    def of(cls, table: pa.Table) -> "Header":
        header: Header = pickle.loads(table["header"][0].as_py())
        return header


def nest(table: pa.Table) -> pa.Array:
    """A table as one list of structs."""
    return one(table.combine_chunks().to_struct_array().combine_chunks())


def unnest(column: pa.ChunkedArray) -> pa.Table:
    """The table that `nest` turned into a list."""
    rows = column.combine_chunks().flatten()
    return pa.Table.from_batches([pa.RecordBatch.from_struct_array(rows)])


def one(values: pa.Array) -> pa.Array:
    """A list array whose only entry is `values`."""
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def ragged(arrays: list[npt.NDArray[Any]], dtype: type[np.generic] = np.int32) -> pa.Array:
    """A list array whose only entry is a list of these arrays, of token ids or another type."""
    offsets = np.cumsum([0, *map(len, arrays)]).astype(np.int32)
    flat = np.concatenate(arrays) if arrays else np.empty(0, dtype)
    return one(pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)))


def arrays(column: pa.ChunkedArray) -> list[Ids]:
    """The arrays that `ragged` joined, as views."""
    lists = column.combine_chunks().flatten()
    flat, offsets = lists.values.to_numpy(), lists.offsets.to_numpy().tolist()
    return [flat[start:stop] for start, stop in pairwise(offsets)]


def conversations(table: pa.Table) -> list[tuple[Ids, list[Ids]]]:
    """The prompt and response ids of every sequence of a unit: one per candidate, or per pair of candidates."""
    prompts, responses = arrays(table["prompts"]), arrays(table["responses"])
    group = table["group"].combine_chunks().flatten().to_numpy()
    return [(prompts[g], [response]) for g, response in zip(group, responses, strict=True)]


def reject_table(shard: Shard, entries: list[tuple[Any, ...]]) -> pa.Table:
    columns = [list(column) for column in zip(*entries, strict=True)] or [[] for _ in REJECTS.names[1:]]
    arrays = [pa.array([shard.uri] * len(entries), pa.string())]
    arrays += [pa.array(column, f.type) for column, f in zip(columns, list(REJECTS)[1:], strict=True)]
    return pa.table(arrays, schema=REJECTS)


def to_raw(row: Row) -> str | None:
    """A row as JSON; values that JSON cannot hold (dates, bytes) become text."""
    return row.raw if isinstance(row, BadRow) else json.dumps(row, default=str)
