"""The stages of a run, one after the other in this process: what Ray runs, without Ray."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray.embed.options import EmbedOptions
from armo_ray.outputs.scores import open_scores
from armo_ray.score.config import ModelOptions, ScoreConfig
from armo_ray.score.job import prepare
from armo_ray.score.stages import Scorer, read_and_tokenize, write_and_commit
from armo_ray.storage import commits, resume
from armo_ray.storage.parts import hive_values
from armo_ray.storage.store import Store

PAIR = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'  # a shard of one row
_SCORERS: dict[tuple[Any, ...], Scorer] = {}  # loading one takes longer than most tests


def config_for(model: Path | str, inputs: Any, output: Path | str, **options: Any) -> ScoreConfig:
    return ScoreConfig.model_validate(_given(model, inputs, output, options))


def embed_options(model: Path | str, inputs: Any, output: Path | str, **options: Any) -> EmbedOptions:
    return EmbedOptions.model_validate(_given(model, inputs, output, options))


def _given(model: Path | str, inputs: Any, output: Path | str, options: dict[str, Any]) -> dict[str, Any]:
    shards = [str(path) for path in inputs] if isinstance(inputs, list) else str(inputs)
    return {"input": shards, "output": str(output), "model": str(model), "dtype": "float32", **options}


def score_locally(model: Path | str, inputs: Any, output: Path | str, **options: Any) -> dict[str, Any]:
    """Score what is not committed yet; returns the manifest."""
    return run_locally(config_for(model, inputs, output, **options))


def embed_locally(model: Path | str, inputs: Any, output: Path | str, **options: Any) -> dict[str, Any]:
    """Embed what is not committed yet; returns the manifest."""
    return run_locally(embed_options(model, inputs, output, **options))


def run_locally(config: ModelOptions) -> dict[str, Any]:
    """Commit what is not committed yet; returns the manifest."""
    job, spans = prepare(config)
    key = (job.model, job.family.name, job.keep_hidden, job.dtype, job.token_budget, job.fixed_packs)
    if key not in _SCORERS:
        _SCORERS[key] = Scorer(job, "cpu")
    store = Store(job.output)
    standing = resume.standing(store, spans, job.fingerprint, config.redo, config.forget)
    resume.drop(store, standing.dropped)
    for span in standing.left:
        for table in read_and_tokenize(span, job):
            write_and_commit(_SCORERS[key](table), job)
    assert resume.to_do(store, spans, job.fingerprint) == []
    commits.finish(store)
    return store.read_json(commits.SUCCESS) or {}


def rows_of(output: Path | str, folder: str = "scores") -> list[dict[str, Any]]:
    """All rows of an output's parts, in the order of the input."""
    store = Store(str(output))
    names = [path.removeprefix(f"{store.root}/") for path in sorted(store.find(folder))]
    tables = [
        pq.read_table(io.BytesIO(store.read(n)), partitioning=None) for n in names if n.endswith(".parquet")
    ]
    rows = [row for table in tables for row in table.to_pylist()]
    return sorted(
        rows, key=lambda r: (r["source"], r["source_row"], -1 if r["candidate"] is None else r["candidate"])
    )


def rows_as_written(output: Path) -> list[dict[str, Any]]:
    """All scores in the order of the manifest, with the columns that are directories."""
    rows: list[dict[str, Any]] = []
    for part in open_scores([str(output)]).parts:
        directories = dict(hive_values(part.uri.removeprefix(str(output))))
        rows += [row | directories for row in pq.read_table(part.uri, partitioning=None).to_pylist()]
    return rows


def scores_of(output: Path) -> dict[str, float]:
    """The score of every row id; row ids are unique."""
    rows = rows_of(output)
    assert len({row["row_id"] for row in rows}) == len(rows)
    return {row["row_id"]: row["score"] for row in rows}


def rejects_of(output: Path | str) -> list[tuple[int, int | None, str]]:
    """Row, candidate and reason of every reject."""
    return [(r["source_row"], r["candidate"], r["reason"]) for r in rows_of(output, "rejects")]


def read_table(output: Path) -> pa.Table:
    return pa.concat_tables(
        pq.read_table(p, partitioning=None) for p in sorted((output / "scores").rglob("*.parquet"))
    )
