"""`--only-where` with `--earlier`: a second model or judge sees only rows that the first one was not sure of."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.errors import ConfigError
from armo_ray.storage import commits
from armo_ray.storage.store import Store
from armo_ray.verify.output import verify_output
from tests.support import judge_outputs as judges
from tests.support.local import config_for, rows_of, score_locally
from tests.support.paths import SAMPLE

ROWS = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()][:24]


def shard_of(folder: Path, kind: str, rows: list[dict[str, str]]) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    else:
        judges.write_rows(path, rows)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_second_run_reads_the_close_rows_of_the_first_and_counts_the_others(
    kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    shard = shard_of(tmp_path, kind, ROWS)
    score_locally(tiny_model, shard, tmp_path / "cheap", unit_rows=10)
    by_row: dict[int, list[float]] = {}
    for row in rows_of(tmp_path / "cheap"):
        by_row.setdefault(row["source_row"], []).append(row["score"])
    margins = {number: max(scores) - min(scores) for number, scores in by_row.items()}
    close = sorted(margins.values())[len(margins) // 3]
    expected = {number for number, margin in margins.items() if margin < close}
    judges.judge_locally(
        judges.PAIR,
        judges.prefers,
        shard,
        tmp_path / "dear",
        unit_rows=12,
        only_where=f"margin < {close!r}",
        earlier=str(tmp_path / "cheap"),
    )
    assert {row["source_row"] for row in rows_of(tmp_path / "dear")} == expected
    records = list(commits.read_log(Store(str(tmp_path / "dear"))).records())
    assert sum(dict(record.extra)["unselected"] for record in records) == len(ROWS) - len(expected)
    assert verify_output(str(tmp_path / "dear"))[1] == []
    score_locally(
        tiny_model,
        shard,
        tmp_path / "again",
        only_where=f"margin < {close!r}",
        earlier=str(tmp_path / "cheap"),
    )
    assert {row["source_row"] for row in rows_of(tmp_path / "again")} == expected


def test_an_earlier_output_that_does_not_fit_is_refused_before_any_work(
    tiny_model: Path, tmp_path: Path
) -> None:
    shard = shard_of(tmp_path, "jsonl", ROWS[:4])
    score_locally(tiny_model, shard, tmp_path / "cheap")
    other = tmp_path / "other.jsonl"
    judges.write_rows(other, ROWS[4:8])

    def refused(inputs: object, where: str = "margin < 1", **options: str) -> str:
        given = {"only_where": where, "earlier": str(tmp_path / "cheap"), **options}
        with pytest.raises(ConfigError) as error:
            score_locally(tiny_model, inputs, tmp_path / "dear", **given)
        assert not (tmp_path / "dear").exists()
        return str(error.value)

    assert "has no scores of" in refused([shard, other])
    assert "quantiles" in refused(shard, "score > q0.5")
    assert "margn" in refused(shard, "margn < 1")
    assert "no _run.json" in refused(shard, earlier=str(tmp_path / "none"))
    judges.write_rows(shard, ROWS[:5])
    assert "changed since it was scored" in refused(shard)
    with pytest.raises(ValueError, match="give it together with --earlier"):
        config_for(tiny_model, shard, tmp_path / "dear", only_where="margin < 1")
