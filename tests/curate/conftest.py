"""Fixtures of several modules here."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.local import rows_as_written
from tests.support.paths import ROOT, SAMPLE
from tests.support.synthetic_outputs import score_synthetically

_ROLLOUTS = "shared/data/alpaca_eval_rollouts"


@pytest.fixture(scope="session")
def real_rollouts() -> Path:
    """6,440 answers to 805 prompts, in five shards."""
    found = next((p / _ROLLOUTS for p in ROOT.parents if (p / _ROLLOUTS).is_dir()), None)
    return found or pytest.skip("needs ../shared/data")


@pytest.fixture(scope="session")
def real_scores(real_rollouts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return score_synthetically(tmp_path_factory.mktemp("real") / "scores", real_rollouts)


@pytest.fixture(scope="session")
def real_rows(real_scores: Path) -> list[dict[str, Any]]:
    """The scores of the real rollouts, in the order of the manifest."""
    return rows_as_written(real_scores)


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
