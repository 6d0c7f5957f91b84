"""Whole runs on a real local Ray, which they share: complete, resumable, and as in one process."""

import gzip
import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest
import ray
from ray.data.datasource.partitioning import Partitioning, PartitionStyle

from armo_ray import coefficients, vectors
from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.score import pipeline
from armo_ray.score.job import prepare
from armo_ray.tiny.families import write_family
from armo_ray.verify.output import verify_output
from tests.support.local import config_for, read_table, rows_of, score_locally, scores_of
from tests.support.paths import ROOT, SAMPLE
from tests.support.runs import commits_of

SHARED = ROOT.parent / "shared" / "data"


def score_on_ray(
    model: Path, inputs: Any, output: Path, replicas: tuple[int, int] = (1, 1), **options: Any
) -> Any:
    config = config_for(model, inputs, output, gpus_per_replica=0, replicas=replicas, **options)
    pipeline.run(*prepare(config), config)
    return json.loads((output / "_SUCCESS").read_text())


def assert_same_scores(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    assert max(abs(found[key] - expected[key]) for key in expected) < 1e-5


def test_a_run_on_ray_is_whole_and_opens_everywhere(local_ray: str, tiny_model: Path, tmp_path: Path) -> None:
    """Neither units nor replicas nor the token budget change a score."""
    out = tmp_path / "out"
    options: Any = {"keep": ["id"], "keep_text": True, "partition_by": ["subset"], "unit_rows": 37}
    manifest = score_on_ray(tiny_model, SAMPLE, out, (2, 2), token_budget=2048, **options)
    assert manifest["totals"]["scored"] == manifest["totals"]["candidates"] == 260
    assert verify_output(str(out)) == ({"units": 7, "candidates": 260, "scored": 260, "rejected": 0}, [])
    score_locally(tiny_model, SAMPLE, tmp_path / "one", token_budget=700)
    score_locally(tiny_model, SAMPLE, tmp_path / "all", token_budget=2048, unit_rows=4096)
    for other in ("one", "all"):
        assert_same_scores(scores_of(out), scores_of(tmp_path / other))

    table = read_table(out)
    sums = (vectors(table) * coefficients(table)).sum(axis=1)
    assert np.abs(sums - table["score"].to_numpy()).max() < 1e-5
    everywhere = f"{out}/scores/**/*.parquet"
    query = f"select subset, count(*), avg(rewards.helpsteer_helpfulness) from '{everywhere}' group by 1"
    by_duckdb = duckdb.execute(query).fetchall()
    assert sum(count for _, count, _ in by_duckdb) == 260
    assert {subset for subset, _, _ in by_duckdb} == {json.loads(x)["subset"] for x in SAMPLE.open()}
    by_ray = ray.data.read_parquet(f"{out}/scores", partitioning=Partitioning(PartitionStyle.HIVE))
    assert {"subset", "rewards", "score"} <= set(by_ray.schema().names)
    assert by_ray.count() == 260
    by_arrow = pa.dataset.dataset(out / "scores", partitioning="hive").to_table(
        columns={"helpfulness": pa.dataset.field("rewards", "helpsteer_helpfulness")}
    )
    assert by_arrow.num_rows == 260
    first = rows_of(out)[0]
    line = json.loads(SAMPLE.open().readline())
    assert first["id"] == line["id"]
    assert first["prompt"] == [{"role": "user", "content": line["prompt"]}]
    assert first["response"] == [{"role": "assistant", "content": line["chosen"]}]


@pytest.mark.nightly
def test_fp8_is_compared_with_bfloat16_on_the_input_and_refused_below_the_bar(
    local_ray: str, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        ConfigError, match=r"fp8: .* the rank correlation of its scores .* less than --min-agreement 1"
    ):
        score_on_ray(tiny_model, SAMPLE, out, dtype="fp8", min_agreement=1.0)
    report = json.loads((out / "_fp8.json").read_text())
    assert report["candidates"] == 260
    assert report["pairs"] >= 130
    assert len(report["columns"]) == 20
    assert not list(out.glob("_commits/*"))
    ended = json.loads((out / "status.json").read_text())
    assert ended["meaning"].startswith("wrong usage or configuration: fp8: ")
    assert [ended[name] for name in ("status", "scored", "rejected", "units")] == [2, 0, 0, 0]
    manifest = score_locally(tiny_model, SAMPLE, out, dtype="fp8", min_agreement=0.5)
    assert manifest["totals"]["scored"] == 260
    exact = tmp_path / "exact"
    score_locally(tiny_model, SAMPLE, exact)
    (found, expected) = ([row["score"] for row in rows_of(o)] for o in (out, exact))
    assert 0.9 < np.corrcoef(found, expected)[0, 1] < 1 - 1e-6


@pytest.mark.skipif(not SHARED.exists(), reason="the large shards are not here")
@pytest.mark.parametrize(
    ("path", "candidates", "options"),
    [
        ("llmbar/preferences.jsonl", 838, {"keep": ["id", "subset"]}),
        ("hh_harmless/test-half.jsonl.gz", 2312, {}),
        (
            "alpaca_eval_rollouts/rollouts-00000-of-00004.parquet",
            1616,
            {"keep": ["generators"], "max_length": 512},
        ),
    ],
    ids=["pairs-jsonl", "transcripts-gz", "rollouts-parquet"],
)
def test_real_shards_are_scored_or_rejected_to_the_last_candidate(
    path: str, candidates: int, options: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    totals = score_locally(tiny_model, SHARED / path, tmp_path / "out", **options)["totals"]
    assert totals["candidates"] == candidates == totals["scored"] + sum(totals["rejected"].values())
    assert verify_output(str(tmp_path / "out"))[1] == []


@pytest.mark.nightly
def test_of_two_models_each_scores_what_it_has_not_into_its_own_output_though_a_card_cannot_be_written(
    local_ray: str, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines, days = SAMPLE.read_text("utf-8").splitlines(keepends=True), tmp_path / "in"
    judge, whole, added = tmp_path / "judge", tmp_path / "out" / "tiny", tmp_path / "out" / "judge"
    write_family(judge, "classifier", "qwen3")
    (days / "date=2026-11-19").mkdir(parents=True)
    (days / "date=2026-11-19" / "a.jsonl").write_text("".join(lines[:20]))
    score_locally(judge, days, added)
    first = commits_of(added)
    (days / "date=2026-11-20").mkdir()
    with gzip.open(days / "date=2026-11-20" / "b.jsonl.gz", "wt") as stream:
        stream.writelines(lines[20:30])
    score_locally(tiny_model, days, whole)
    of_whole = commits_of(whole)
    (added / "README.md").mkdir()
    command = ["score", "--input", str(days), "--output", str(tmp_path / "out"), "--dtype", "float32"]
    command += ["--gpus-per-replica", "0", "--replicas", "1", "--model", str(tiny_model), str(judge)]
    assert main(command) == 0
    assert commits_of(whole) == of_whole  # a finished run does nothing
    both = commits_of(added)
    assert {name: both[name] for name in first} == first
    assert len(both) == 2
    assert verify_output(str(added))[1] == []
    manifest = json.loads((added / "_SUCCESS").read_text())
    assert manifest["totals"]["scored"] == 60
    assert {part["path"].split("/")[1] for part in manifest["parts"]} == {
        "date=2026-11-19",
        "date=2026-11-20",
    }
    warned = [entry.getMessage() for entry in caplog.records if "card" in entry.getMessage()]
    assert len(warned) == 2  # while it went on, and at its end
    assert all("README.md" in text for text in warned)
    score_locally(judge, days, tmp_path / "alone")
    assert_same_scores(scores_of(added), scores_of(tmp_path / "alone"))
    assert scores_of(whole).keys() == scores_of(added).keys()


def test_too_many_rejects_end_in_status_3_with_the_rest_scored(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # the first thousand are tried out before the run, and would refuse it
    rows = [{"prompt": "a", "response": "b"}] * 1000 + [{"prompt": "", "response": "b"}] * 11
    shard, out = tmp_path / "a.jsonl", tmp_path / "out"
    shard.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score_locally(tiny_model, shard, out)
    command = ["score", "--model", str(tiny_model), "--input", str(shard), "--output", str(out)]
    with caplog.at_level("INFO"):
        assert main([*command, "--dtype", "float32"]) == 3  # the status is of all that is there
    assert "1000 of 1011 candidates scored, 11 rejected (11 empty_prompt)" in caplog.text
    assert (out / "_SUCCESS").exists()
