"""Fixtures of several modules here."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.paths import SAMPLE


@pytest.fixture(scope="session")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of the sample with responses to neighboring prompts, in a Parquet and a JSONL shard. Most prompts have
    responses in both, and so in two parts of the output."""
    folder = tmp_path_factory.mktemp("rollouts")
    rows = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()][:40]
    responses = [row[side] for row in rows for side in ("chosen", "rejected")]
    prompts = [
        {"prompt": row["prompt"], "responses": [responses[(5 * i + k) % 80] for k in range(4)]}
        for i, row in enumerate(rows)
    ]
    more = [
        {**row, "responses": [*row["responses"][1::2], "Yes.", f"No, {i}."]} for i, row in enumerate(prompts)
    ]
    pq.write_table(pa.Table.from_pylist(prompts), folder / "a.parquet", row_group_size=16)
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more[:30]), "utf-8")
    return folder
