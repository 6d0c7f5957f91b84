"""Outputs of scores for real shards, complete and valid, with numbers from a seed instead of a model."""

import hashlib
import json
import shutil
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray.outputs.schema import MESSAGES
from armo_ray.storage import commits
from armo_ray.storage.parts import as_written
from armo_ray.storage.readers import BadRow, read_units, sample
from armo_ray.storage.shards import find_shards
from armo_ray.storage.store import Store
from armo_ray.storage.units import cut
from armo_ray.text.conversations import candidates_of
from armo_ray.text.detect import detect
from jobs.measure.synthetic_scores import draw, open_output, scored, write_unit

UNIT_ROWS = 64


def score_synthetically(
    output: Path | str, inputs: Path | str, keep_text: bool = False, seed: int = 0, columns: Any = None
) -> Path:
    """Score shards as `armo-ray score` would, without a model; a token is a word. `columns` are recorded as the
    layout's, as if they had been read."""
    shards = find_shards([str(inputs)])
    names, _, _ = sample(shards[0], 100)
    layout = detect(names)
    recorded = {"kind": layout.kind, **layout.columns, **(columns or {})}
    store, schema = open_output(str(output), keep_text, recorded)
    for shard in shards:
        (span,) = cut([shard], "", UNIT_ROWS, layout.candidate_columns)
        columns = list(layout.columns.values())

        def count(row: Any) -> int:
            return 1 if isinstance(row, BadRow) else layout.count(row)

        for done in read_units(span, columns, count, UNIT_ROWS, ""):
            found = [(n, c) for n, row in done.rows for c in candidates_of(row, layout) if c.reason is None]  # type: ignore[arg-type]
            # as of a model: the same answer to the same prompt scores the same
            drawn = [draw(_rng(seed, c.prompt, c.response), 1) for _, c in found]
            rewards, gating = (np.concatenate(v) for v in zip(*drawn, strict=True))
            table = scored(_columns(shard, found), schema, rewards, gating)
            unit = done.unit
            write_unit(store, table, shard, unit.ordinal, unit.first_row, unit.num_rows, unit.last)
    commits.finish(store)
    return Path(output)


def with_columns(output: Path, copy: Path, /, **columns: Any) -> Path:
    """A copy of an output with new columns, each of one value or of a function of the row's place in its part."""
    shutil.copytree(output, copy)
    for part in (copy / "scores").rglob("*.parquet"):
        table = pq.read_table(part, partitioning=None)
        table = table.drop_columns([name for name in columns if name in table.column_names])
        for name, value in columns.items():
            values = [value(i) if callable(value) else value for i in range(table.num_rows)]
            table = table.append_column(name, pa.array(values))
        pq.write_table(table, part)
    return commit_again(copy)


def commit_again(output: Path) -> Path:
    """Have the commits and the manifest of an output name its parts as they are now."""
    store = Store(str(output))
    for record in commits.read_commits(store):
        parts = tuple(as_written(store, part) for part in record.parts)
        store.write(f"{commits.COMMITS}/{record.unit}.json", replace(record, parts=parts).to_json())
    if store.read_json(commits.SUCCESS):
        commits.finish(store)
    return output


def _rng(seed: int, prompt: Any, answer: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(json.dumps([prompt, answer]).encode())])


def _columns(shard: Any, found: list[tuple[int, Any]]) -> dict[str, Any]:
    def digest(prompt: Any) -> str:
        return hashlib.blake2b(json.dumps(prompt).encode(), digest_size=16).hexdigest()

    answers = [[{"role": "assistant", "content": c.response}] for _, c in found]
    return {
        "row_id": [f"{shard.hash}:{n}:{c.index}" for n, c in found],
        "prompt_id": [digest(c.prompt) for _, c in found],
        "source": [shard.uri] * len(found),
        "source_row": [n for n, _ in found],
        "candidate": [c.index for _, c in found],
        "role": [c.role for _, c in found],
        "num_prompt_tokens": [sum(len(m["content"].split()) for m in c.prompt) for _, c in found],
        "num_response_tokens": [len(c.response.split()) for _, c in found],
        "prompt": pa.array([c.prompt for _, c in found], MESSAGES),
        "response": pa.array(answers, MESSAGES),
    }
