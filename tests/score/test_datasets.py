"""Ray Datasets that a caller reads and writes are scored as shards are, whatever their blocks are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray

from armo_ray import score_dataset
from armo_ray.errors import ConfigError
from armo_ray.score import pipeline
from armo_ray.score.config import load_config
from armo_ray.score.job import prepare_dataset
from armo_ray.score.stages import Scorer, candidate_rows
from tests.support.local import rows_of, score_locally
from tests.support.paths import SAMPLE


def on_replicas(ds: Any, model: Path, keep: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = score_dataset(ds, str(model), dtype="float32", keep=keep).take_all()
    return found


def in_process(ds: Any, model: Path, keep: list[str]) -> list[dict[str, Any]]:
    """The stages of `score_dataset` on blocks that Ray makes, without a replica, which takes seconds to start."""
    given = {"input": ["dataset"], "output": "dataset", "model": str(model), "dtype": "float32", "keep": keep}
    seen = pipeline._seen(ds, bool(keep))
    if not seen:
        return []
    job = prepare_dataset(load_config(None, given), seen)
    scorer, found = Scorer(job, "cpu"), []
    for batch in ds.iter_batches(batch_size=None, batch_format="pyarrow"):
        found += candidate_rows(scorer(pipeline._tokenize(batch, job)), job).to_pylist()
    return found


def test_a_dataset_of_the_callers_own_gets_the_same_scores(
    local_ray: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in SAMPLE.open()][:40]
    rows.append({"id": "x", "prompt": "", "chosen": "a", "rejected": "b"})
    score_locally(tiny_model, SAMPLE, tmp_path / "out", keep=["id"])
    expected = {(row["id"], row["role"]): row["score"] for row in rows_of(tmp_path / "out")}
    tensor = np.ones(2, np.int8)
    ds = ray.data.from_items([{key: row.get(key) for key in rows[0]} | {"x": tensor} for row in rows])
    found = score_dataset(ds, str(tiny_model), 16, dtype="float32", keep=["id", "x"]).take_all()
    rejected = [row for row in found if row["reason"] is not None]
    assert [(row["candidate"], row["reason"]) for row in rejected] == [
        (0, "empty_prompt"),
        (1, "empty_prompt"),
    ]
    scored = {(row["id"], row["role"]): row["score"] for row in found if row["reason"] is None}
    assert len(scored) == 80
    assert all(row["x"] == [1, 1] for row in found if row["reason"] is None)
    assert max(abs(scored[key] - expected[key]) for key in scored) < 1e-5


QUESTIONS = [
    {"id": i, "prompt": f"Name lake {i}.", "responses": ["Titicaca.", f"Bread and {i}."]} for i in range(2)
]
CHAT = [{"role": "user", "content": "Name lake 0."}, {"role": "assistant", "content": "Titicaca."}]


def made_by(function: Any, rows: list[Any], batch_format: str) -> Any:
    return ray.data.from_items(rows).map_batches(function, batch_format=batch_format)


def with_tensors(batch: dict[str, Any]) -> dict[str, Any]:
    flat = 3 * batch["id"][:, None] + np.arange(3)
    return {**batch, "x": flat, "y": np.ones((len(flat), 1, 2), np.float32)}


BLOCKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "pandas": (lambda: ray.data.from_pandas(pd.DataFrame(QUESTIONS)), {"id": [0, 0, 1, 1]}),
    "pandas-batches": (lambda: made_by(lambda df: df, QUESTIONS, "pandas"), {"id": [0, 0, 1, 1]}),
    "numpy-batches": (
        lambda: made_by(lambda batch: batch, [{**row, "x": ["a", None]} for row in QUESTIONS], "numpy"),
        {"id": [0, 0, 1, 1], "x": [["a", None]] * 4},
    ),
    "tensors": (
        lambda: made_by(with_tensors, QUESTIONS, "numpy"),
        {"x": [[0, 1, 2]] * 2 + [[3, 4, 5]] * 2, "y": [[[1.0, 1.0]]] * 4},
    ),
    "null-first-block": (
        lambda: ray.data.from_pandas(
            [pd.DataFrame([{**row, "x": x}]) for row, x in zip(QUESTIONS, [None, "late"], strict=True)]
        ),
        {"x": [None, None, "late", "late"]},
    ),
    "messages": (
        lambda: made_by(lambda batch: batch, [{"id": 0, "messages": CHAT}], "numpy"),
        {"id": [0]},
    ),
    "filtered-to-empty": (lambda: ray.data.from_items(QUESTIONS).filter(lambda row: False), {"id": []}),
    "without-columns": (lambda: ray.data.from_items([]), {"id": []}),
}


@pytest.mark.filterwarnings("ignore:Use 'expr' instead")  # a filter of plain Python is what people have
@pytest.mark.parametrize("scored", [in_process, pytest.param(on_replicas, marks=pytest.mark.nightly)])
@pytest.mark.parametrize(("blocks", "kept"), BLOCKS.values(), ids=BLOCKS.keys())
def test_a_dataset_of_any_blocks_is_scored_with_what_it_keeps(
    blocks: Any,
    kept: dict[str, Any],
    scored: Callable[..., list[dict[str, Any]]],
    local_ray: str,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    score_locally(tiny_model, tmp_path / "in.jsonl", tmp_path / "out")
    expected = [row["score"] for row in rows_of(tmp_path / "out")]
    found = scored(blocks(), tiny_model, list(kept))
    assert [(row["reason"], row["flags"]) for row in found] == [(None, [])] * len(found)
    for name, values in kept.items():
        assert sorted(str(row[name]) for row in found) == sorted(map(str, values))
    assert sorted(row["score"] for row in found) == pytest.approx(sorted(expected[: len(found)]), abs=1e-5)


def test_what_a_dataset_cannot_keep_is_refused_with_the_column(local_ray: str, tiny_model: Path) -> None:
    ds = made_by(
        lambda batch: {**batch, "x": np.array([1 + 2j] * len(batch["id"]), object)}, QUESTIONS, "numpy"
    )
    with pytest.raises(ConfigError, match=r"column x of the dataset holds a complex: .*--keep-json x"):
        score_dataset(ds, str(tiny_model), dtype="float32", keep=["x"])


def test_a_dataset_has_labels_too(local_ray: str, tiny_model: Path) -> None:
    rows = [
        {
            "prompt": "Name a tree.",
            "responses": ["a", "b"],
            "y": np.array([2.0, 3.5], np.float32),
            "z": [True, None],
        },
        {
            "prompt": "Name a tree.",
            "responses": ["c", ""],
            "y": np.array([1.0, 0.0], np.float32),
            "z": [None, False],
        },
    ]
    ds = ray.data.from_items(rows)
    given = {"input": ["dataset"], "output": "dataset", "model": str(tiny_model), "dtype": "float32"}
    job = prepare_dataset(
        load_config(None, {**given, "label": ["y", "z"], "keep_text": True}), pipeline._seen(ds, False)
    )
    scorer, found = Scorer(job, "cpu"), dict[str | None, Any]()
    for batch in ds.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in candidate_rows(scorer(pipeline._tokenize(batch, job)), job).to_pylist():
            found[row["response"] and row["response"][0]["content"]] = row["labels"]
    assert found == {
        "a": {"y": 2.0, "z": 1.0},
        "b": {"y": 3.5, "z": None},
        "c": {"y": 1.0, "z": None},
        None: None,
    }
