"""Write a complete output with random scores, to try curation at any size.

python -m jobs.measure.synthetic_scores DIR --candidates 1000000
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from armo_ray.model.recognize import ARMORM_REWARDS
from armo_ray.outputs.schema import MESSAGES, footer, scores_schema
from armo_ray.storage import commits, parts
from armo_ray.storage.records import CommitRecord
from armo_ray.storage.shards import Shard
from armo_ray.storage.store import Store
from jobs.measure.synthetic import WORDS

Vectors = npt.NDArray[np.float32]
NAMES = list(ARMORM_REWARDS)
ANSWERS = 8  # per prompt
UNIT_ROWS = 2048
_SHARD_UNITS = 64
_POOL = 4096  # texts of up to 49 words more than the least, from which all responses are drawn


def open_output(uri: str, keep_text: bool, layout: dict[str, str]) -> tuple[Store, pa.Schema]:
    """Start an output of a model that does not exist. Returns it with the schema of its parts."""
    store = Store(uri)
    identity = {
        "model_fingerprint": "synthetic",
        "dtype": "float32",
        "keep_text": keep_text,
        "layout": layout,
    }
    commits.open_run(store, identity, {})
    rng = np.random.default_rng(0)
    metadata = {
        "model": "synthetic",
        "model_family": "armorm",
        "model_revision": None,
        "model_fingerprint": "synthetic",
        "dtype": "float32",
        "reward_transform_matrix": (np.eye(len(NAMES)) + 0.01 * rng.normal(size=(len(NAMES),) * 2)).tolist(),
        "schema_version": 1,
        "run_fingerprint": "synthetic",
    }
    return store, scores_schema(NAMES, pa.schema([]), keep_text, metadata)


def draw(rng: np.random.Generator, rows: int) -> tuple[Vectors, Vectors]:
    """Random rewards and gates, each of shape (rows, objectives)."""
    rewards = rng.normal(0.5, 0.2, (rows, len(NAMES))).astype(np.float32)
    return rewards, rng.dirichlet(np.ones(len(NAMES)), rows).astype(np.float32)


def scored(columns: dict[str, Any], schema: pa.Schema, rewards: Vectors, gating: Vectors) -> pa.Table:
    """A table with these columns, the rewards and gates, and the score that follows from them."""
    rows = len(columns["row_id"])
    columns = columns | {"rewards": _struct(rewards), "gating": _struct(gating), "score": pa.nulls(rows)}
    columns |= {"flags": pa.array([[]] * rows, pa.list_(pa.string()))}
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in schema]
    table = pa.table(arrays, schema=schema)
    # in float64, so that equal rewards and gates give equal scores, whatever the processor's order of summation
    weights = gating @ np.array(footer(schema)["reward_transform_matrix"]).T
    score = pa.array((rewards * weights).sum(axis=1), pa.float32())
    return table.set_column(schema.get_field_index("score"), schema.field("score"), score)


def _struct(values: Vectors) -> pa.StructArray:
    return pa.StructArray.from_arrays([pa.array(np.ascontiguousarray(c)) for c in values.T], NAMES)


def write_unit(
    store: Store, table: pa.Table, shard: Shard, ordinal: int, first_row: int, rows: int, last: bool
) -> None:
    """Write and commit a unit like a run."""
    unit = shard.hash + f"{ordinal:016x}"
    written = parts.write_scores(store, unit, table, shard.partitions, ())
    record = CommitRecord(
        unit=unit,
        source=shard.uri,
        identity=shard.identity,
        ordinal=ordinal,
        first_row=first_row,
        num_rows=rows,
        last=last,
        candidates=table.num_rows,
        scored=table.num_rows,
        rejected={},
        num_tokens=0,
        computed_tokens=0,
        parts=tuple(written),
    )
    commits.commit(store, record)


def write_output(
    directory: Path, candidates: int, keep_text: bool = True, seed: int = 0, words: int = 10
) -> None:
    """Write a complete output of `candidates` responses of at least so many words, ANSWERS per prompt."""
    store, schema = open_output(
        str(directory), keep_text, {"kind": "rollouts", "prompt": "p", "responses": "r"}
    )
    pool = _texts(np.random.default_rng(seed), words)
    starts = range(0, candidates // ANSWERS, UNIT_ROWS // ANSWERS)
    for number, first in enumerate(starts):
        ordinal = number % _SHARD_UNITS
        shard = Shard(f"/synthetic/shard-{number // _SHARD_UNITS:05d}.parquet", 0, "0-0", ())
        rows = min(UNIT_ROWS // ANSWERS, candidates // ANSWERS - first)
        columns = _columns(shard, ordinal * UNIT_ROWS // ANSWERS, first, rows, pool)
        last = ordinal + 1 == _SHARD_UNITS or number + 1 == len(starts)
        vectors = draw(np.random.default_rng([seed, number]), rows * ANSWERS)
        table = scored(columns, schema, *vectors)
        write_unit(store, table, shard, ordinal, ordinal * UNIT_ROWS // ANSWERS, rows, last)
    commits.finish(store)


def _columns(shard: Shard, row: int, first: int, rows: int, pool: pa.Array) -> dict[str, Any]:
    prompts = np.repeat(np.arange(first, first + rows), ANSWERS)
    source_row = prompts - first + row
    candidate = np.tile(np.arange(ANSWERS), rows)
    drawn = np.random.default_rng(first).integers(0, len(pool), len(prompts))
    ids = [
        hashlib.blake2b(b"%d" % prompt, digest_size=16).hexdigest() for prompt in range(first, first + rows)
    ]
    asked = pa.array(
        [f"Question {prompt}: {WORDS[prompt % len(WORDS)]}?" for prompt in range(first, first + rows)]
    )
    return {
        "row_id": [f"{shard.hash}:{r}:{c}" for r, c in zip(source_row, candidate, strict=True)],
        "prompt_id": pa.array(ids).take(prompts - first),
        "source": [shard.uri] * len(prompts),
        "source_row": source_row,
        "candidate": candidate,
        "role": ["response"] * len(prompts),
        "num_prompt_tokens": np.full(len(prompts), 20),
        "num_response_tokens": 10 + drawn % 50,
        "prompt": _messages("user", asked.take(prompts - first)),
        "response": _messages("assistant", pool.take(drawn)),
    }


def _texts(rng: np.random.Generator, words: int) -> pa.Array:
    return pa.array([" ".join(WORDS[rng.integers(0, len(WORDS), words + i % 50)]) for i in range(_POOL)])


def _messages(role: str, content: pa.Array) -> pa.Array:
    structs = pa.StructArray.from_arrays(
        [pa.array([role] * len(content)), content], fields=list(MESSAGES.value_type)
    )
    return pa.ListArray.from_arrays(pa.array(np.arange(len(content) + 1, dtype=np.int32)), structs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--candidates", type=int, default=100_000)
    args = parser.parse_args()
    write_output(args.directory, args.candidates)


if __name__ == "__main__":
    main()
