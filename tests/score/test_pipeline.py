"""Whole runs on a real local Ray: complete, resumable, stopped and killed."""

import gzip
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pytest
import ray
from ray.data.datasource.partitioning import Partitioning, PartitionStyle

from armo_ray import coefficients, score_dataset, vectors
from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.score import pipeline
from armo_ray.score.job import prepare
from armo_ray.storage.store import Store
from armo_ray.tiny.families import write_family
from armo_ray.verify.output import verify_output
from jobs.measure.scale import descendants
from tests.support import runs
from tests.support.local import config_for, read_table, rows_of, score_locally, scores_of
from tests.support.paths import ROOT, SAMPLE
from tests.support.runs import commits_of, finish, kill_run, wait_for_commits

pytest_plugins = ["tests.support.s3_server"]

SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def score_on_ray(
    model: Path, inputs: Any, output: Path, replicas: tuple[int, int] = (1, 1), **options: Any
) -> Any:
    config = config_for(model, inputs, output, gpus_per_replica=0, replicas=replicas, **options)
    pipeline.run(*prepare(config), config)
    return json.loads((output / "_SUCCESS").read_text())


def assert_same_scores(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    assert max(abs(found[key] - expected[key]) for key in expected) < 1e-5


def test_a_run_on_ray_is_whole_and_opens_everywhere(
    local_ray: None, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    manifest = score_on_ray(
        tiny_model, SAMPLE, out, keep=["id"], keep_text=True, partition_by=["subset"], unit_rows=100
    )
    assert manifest["totals"]["scored"] == manifest["totals"]["candidates"] == 260
    assert verify_output(str(out)) == ({"units": 3, "candidates": 260, "scored": 260, "rejected": 0}, [])

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


@pytest.mark.parametrize("unit_rows", [37, 4096])
def test_units_and_replicas_never_change_a_score(
    unit_rows: int, local_ray: None, tiny_model: Path, tmp_path: Path
) -> None:
    score_locally(tiny_model, SAMPLE, tmp_path / "one", token_budget=700)
    score_on_ray(tiny_model, SAMPLE, tmp_path / "two", (2, 2), unit_rows=unit_rows, token_budget=2048)
    assert_same_scores(scores_of(tmp_path / "two"), scores_of(tmp_path / "one"))


def test_fp8_is_compared_with_bfloat16_on_the_input_and_refused_below_the_bar(
    local_ray: None, tiny_model: Path, tmp_path: Path
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
    manifest = score_on_ray(tiny_model, SAMPLE, out, dtype="fp8", min_agreement=0.5)
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
    path: str, candidates: int, options: dict[str, Any], local_ray: None, tiny_model: Path, tmp_path: Path
) -> None:
    totals = score_on_ray(tiny_model, SHARED / path, tmp_path / "out", **options)["totals"]
    assert totals["candidates"] == candidates == totals["scored"] + sum(totals["rejected"].values())
    assert verify_output(str(tmp_path / "out"))[1] == []


def test_a_dataset_of_the_callers_own_gets_the_same_scores(
    local_ray: None, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in SAMPLE.open()][:40]
    rows.append({"id": "x", "prompt": "", "chosen": "a", "rejected": "b"})
    score_locally(tiny_model, SAMPLE, tmp_path / "out", keep=["id"])
    expected = {(row["id"], row["role"]): row["score"] for row in rows_of(tmp_path / "out")}
    ds = ray.data.from_items([{key: row.get(key) for key in rows[0]} for row in rows])
    found = score_dataset(ds, str(tiny_model), 16, dtype="float32", keep=["id"]).take_all()
    rejected = [row for row in found if row["reason"] is not None]
    assert [(row["candidate"], row["reason"]) for row in rejected] == [
        (0, "empty_prompt"),
        (1, "empty_prompt"),
    ]
    scored = {(row["id"], row["role"]): row["score"] for row in found if row["reason"] is None}
    assert len(scored) == 80
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
@pytest.mark.parametrize(("blocks", "kept"), BLOCKS.values(), ids=BLOCKS.keys())
def test_a_dataset_of_any_blocks_is_scored_with_what_it_keeps(
    blocks: Any, kept: dict[str, Any], local_ray: None, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    score_locally(tiny_model, tmp_path / "in.jsonl", tmp_path / "out")
    expected = [row["score"] for row in rows_of(tmp_path / "out")]
    found = score_dataset(blocks(), str(tiny_model), dtype="float32", keep=list(kept)).take_all()
    assert [(row["reason"], row["flags"]) for row in found] == [(None, [])] * len(found)
    for name, values in kept.items():
        assert sorted(str(row[name]) for row in found) == sorted(map(str, values))
    assert sorted(row["score"] for row in found) == pytest.approx(sorted(expected[: len(found)]), abs=1e-5)


def test_what_a_dataset_cannot_keep_is_refused_with_the_column(local_ray: None, tiny_model: Path) -> None:
    ds = made_by(
        lambda batch: {**batch, "x": np.array([1 + 2j] * len(batch["id"]), object)}, QUESTIONS, "numpy"
    )
    with pytest.raises(ConfigError, match=r"column x of the dataset holds a complex: .*--keep-json x"):
        score_dataset(ds, str(tiny_model), dtype="float32", keep=["x"])


def test_two_models_score_the_same_rows_each_into_an_output_of_its_own(
    local_ray: None, tiny_model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "judge"
    write_family(other, "classifier", "qwen3")
    command = ["score", "--input", str(SAMPLE), "--output", str(tmp_path / "out"), "--dtype", "float32"]
    command += ["--gpus-per-replica", "0", "--replicas", "1", "--model", str(tiny_model), str(other)]
    assert main(command) == 0
    both = [scores_of(tmp_path / "out" / name) for name in ("tiny", "judge")]
    assert both[0].keys() == both[1].keys()
    for model, found in zip((tiny_model, other), both, strict=True):
        score_locally(model, SAMPLE, tmp_path / f"alone-{model.name}")
        assert_same_scores(found, scores_of(tmp_path / f"alone-{model.name}"))


def test_added_shards_alone_are_scored_and_a_finished_run_does_nothing(
    local_ray: None, tiny_model: Path, tmp_path: Path
) -> None:
    lines = SAMPLE.read_text("utf-8").splitlines(keepends=True)
    days = tmp_path / "in"
    (days / "date=2026-11-19").mkdir(parents=True)
    (days / "date=2026-11-19" / "a.jsonl").write_text("".join(lines[:20]))
    score_on_ray(tiny_model, days, tmp_path / "out")
    first = commits_of(tmp_path / "out")
    (days / "date=2026-11-20").mkdir()
    with gzip.open(days / "date=2026-11-20" / "b.jsonl.gz", "wt") as stream:
        stream.writelines(lines[20:30])
    manifest = score_on_ray(tiny_model, days, tmp_path / "out")
    assert manifest["totals"]["scored"] == 60
    both = commits_of(tmp_path / "out")
    assert {name: both[name] for name in first} == first
    assert len(both) == 2
    assert {part["path"].split("/")[1] for part in manifest["parts"]} == {
        "date=2026-11-19",
        "date=2026-11-20",
    }
    score_on_ray(tiny_model, days, tmp_path / "out")
    assert commits_of(tmp_path / "out") == both


def test_a_card_that_cannot_be_written_costs_the_run_nothing(
    local_ray: None, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out" / "README.md").mkdir(parents=True)
    assert score_on_ray(tiny_model, SAMPLE, tmp_path / "out")["totals"]["scored"] == 260
    assert verify_output(str(tmp_path / "out"))[1] == []
    warned = [entry.getMessage() for entry in caplog.records if "card" in entry.getMessage()]
    assert len(warned) == 2  # while it went on, and at its end
    assert all("README.md" in text for text in warned)


def start(model: Path, inputs: Path | str, output: Path | str, *options: str) -> subprocess.Popen[str]:
    return runs.start(model, inputs, output, "--unit-rows", "10", *options)


def test_a_run_killed_twice_computes_no_unit_again_and_ends_as_an_undisturbed_one(
    tiny_model: Path, formats: Path, tmp_path: Path
) -> None:
    score_locally(tiny_model, formats, tmp_path / "undisturbed", unit_rows=10)
    out = tmp_path / "out"
    seen: dict[str, bytes] = {}
    for more in (1, 3):
        process = start(tiny_model, formats, out)
        wait_for_commits(process, out, len(seen) + more)
        kill_run(process)
        assert not (out / "_SUCCESS").exists()
        assert "In progress: " in (out / "README.md").read_text()
        now = commits_of(out)
        assert {name: now[name] for name in seen} == seen, "a committed unit was computed again"
        seen = now
    finish(start(tiny_model, formats, out))
    final = commits_of(out)
    assert {name: final[name] for name in seen} == seen, "a committed unit was computed again"
    card = (out / "README.md").read_text()
    assert "Complete. " in card
    assert "| scored | 260 |" in card
    assert_same_scores(scores_of(out), scores_of(tmp_path / "undisturbed"))
    assert verify_output(str(out))[1] == []


def test_a_run_out_of_time_stops_with_status_5_and_goes_on(
    tiny_model: Path, formats: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    errors = finish(start(tiny_model, formats, out, "--max-runtime", "3s"), 5)
    assert "--max-runtime is over; run it again to go on" in errors
    assert not (out / "_lock.json").exists()
    finish(start(tiny_model, formats, out, "--max-runtime", "1h"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_stops_the_run_cleanly_and_leaves_it_resumable(
    name: str, tiny_model: Path, formats: Path, tmp_path: Path
) -> None:
    process = start(tiny_model, formats, tmp_path / "out")
    wait_for_commits(process, tmp_path / "out", 2)
    started = descendants(process.pid)
    process.send_signal(getattr(signal, name))
    errors = finish(process, 1)
    assert "stopped; what is committed stays" in errors
    assert "Traceback" not in errors
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline, "processes outlive the run"
        time.sleep(0.1)
    committed = len(list((tmp_path / "out" / "_commits").iterdir()))
    assert f"Not complete: {committed} units were committed" in (tmp_path / "out" / "README.md").read_text()
    score_locally(tiny_model, formats, tmp_path / "out", unit_rows=10)
    assert len(scores_of(tmp_path / "out")) == 260


def test_too_many_rejects_end_in_status_3_with_the_rest_scored(tiny_model: Path, tmp_path: Path) -> None:
    # the first thousand are tried out before the run, and would refuse it
    rows = [{"prompt": "a", "response": "b"}] * 1000 + [{"prompt": "", "response": "b"}] * 11
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    errors = finish(start(tiny_model, tmp_path / "a.jsonl", tmp_path / "out"), 3)
    assert "1000 of 1011 candidates scored, 11 rejected (11 empty_prompt)" in errors
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_run_from_s3_to_s3_scores_as_one_on_a_disk(s3: str, tiny_model: Path, tmp_path: Path) -> None:
    store = Store(s3)
    store.write("in/date=2026-11-20/a.jsonl", SAMPLE.read_bytes())
    finish(start(tiny_model, f"{s3}/in/", f"{s3}/out", "--keep", "id"))
    assert verify_output(f"{s3}/out") == ({"units": 26, "candidates": 260, "scored": 260, "rejected": 0}, [])
    score_locally(tiny_model, SAMPLE, tmp_path / "out", unit_rows=10)
    assert b"| scored | 260 |" in store.read("out/README.md")
    store.fs.get(f"{store.root}/out/scores", str(tmp_path / "fetched" / "scores"), recursive=True)
    fetched = [(row["source_row"], row["candidate"], row["score"]) for row in rows_of(tmp_path / "fetched")]
    local = [(row["source_row"], row["candidate"], row["score"]) for row in rows_of(tmp_path / "out")]
    assert [row[:2] for row in fetched] == [row[:2] for row in local]
    assert max(abs(a[2] - b[2]) for a, b in zip(fetched, local, strict=True)) < 1e-5
