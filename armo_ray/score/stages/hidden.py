"""The hidden states of a unit: from what the model returns to columns of its table, and to parts."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from armo_ray.outputs.hidden import Floats, numbers_of
from armo_ray.outputs.schema import HIDDEN_GATE, HIDDEN_LAST, footer, hidden_field, prompts_schema
from armo_ray.score.stages.unit_block import nest, one, unnest

GATES = "gates"  # column of the unit's prompts, each with its hidden state


def add_states(table: pa.Table, states: npt.NDArray[Any] | None, scores: pa.Schema) -> pa.Table:
    """Add the states (C, R, H) of a unit's candidates: the last of the R of each, and the first once per prompt.

    Raises RuntimeError if they are not what the schema of the scores says.
    """
    hidden = footer(scores)["hidden"]
    size, dtype, reads = int(hidden["size"]), str(hidden["dtype"]), 1 + bool(hidden["gates"])
    if states is None:  # of no candidates
        states = np.empty((0, reads, size), np.uint16)
    if states.shape[1:] != (reads, size):
        raise RuntimeError(f"the model returns hidden states {states.shape[1:]}, expected {(reads, size)}")
    table = table.append_column(HIDDEN_LAST, one(_column(states[:, -1], size, dtype)))
    if not hidden["gates"]:
        return table
    ids = unnest(table["scored"])["prompt_id"].combine_chunks()
    prompts = ids.unique()
    first = pc.index_in(prompts, value_set=ids).to_numpy()
    of_prompts = pa.table({"prompt_id": prompts, HIDDEN_GATE: _column(states[first, 0], size, dtype)})
    return table.append_column(GATES, nest(of_prompts))


def _column(states: npt.NDArray[Any], size: int, dtype: str) -> pa.Array:
    kind = hidden_field("", size, dtype).type
    buffer = pa.py_buffer(np.ascontiguousarray(states).tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(states), [None, buffer])


def finite_states(table: pa.Table, scores: pa.Schema) -> npt.NDArray[np.bool_] | None:
    """Whether the states of each candidate are finite, its prompt's included; None if none are kept."""
    if HIDDEN_LAST not in table.column_names:
        return None
    hidden = footer(scores)["hidden"]
    flat = pa.chunked_array([table[HIDDEN_LAST].combine_chunks().flatten()])
    finite = _finite_rows(numbers_of(flat, hidden))
    if GATES in table.column_names:
        prompts = unnest(table[GATES])
        good = _finite_rows(numbers_of(prompts[HIDDEN_GATE], hidden))
        ids = unnest(table["scored"])["prompt_id"]
        finite &= good[pc.index_in(ids, value_set=prompts["prompt_id"]).to_numpy()]
    return finite


def _finite_rows(states: Floats) -> npt.NDArray[np.bool_]:
    return np.asarray(np.isfinite(states).all(axis=1))


def prompts_of(table: pa.Table, rows: pa.Table) -> pa.Table | None:
    """The part of the prompts of the rows that are written; None if the head reads no gate."""
    if GATES not in table.column_names:
        return None
    prompts, hidden = unnest(table[GATES]), footer(rows.schema)["hidden"]
    used = prompts.filter(pc.is_in(prompts["prompt_id"], value_set=rows["prompt_id"]))
    schema = prompts_schema(int(hidden["size"]), str(hidden["dtype"]), rows.schema.metadata)
    return used.cast(schema)
