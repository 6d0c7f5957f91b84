"""Filters keep the rows that plain Python keeps, unchanged and in order, and report what each rule removed."""

import json
import math
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armo_ray.cli.main import main
from armo_ray.curate import derived_output
from armo_ray.expressions.expressions import parse
from armo_ray.outputs.rules import Rules, Top, find_failures, find_thresholds, values_of
from armo_ray.outputs.schema import footer
from armo_ray.verify.output import verify_output
from tests.support.by_day import by_day
from tests.support.local import PAIR, rows_as_written, score_locally
from tests.support.paths import SAMPLE
from tests.support.synthetic_outputs import with_columns

TYPES = {"x": "FLOAT", "g": "VARCHAR"}


def quantile(values: list[float], fraction: float) -> float:
    """The smallest value such that at least a fraction of all values are not larger."""
    return sorted(values)[max(math.ceil(round(fraction * len(values), 6)), 1) - 1]


def test_the_rows_kept_are_those_that_plain_python_keeps(scored_pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "kept"
    rules = [
        "score >= q0.25",
        "rewards.helpsteer_verbosity < q.9 or num_response_tokens < 50",
        "role != 'none'",
    ]
    command = [
        "filter",
        str(scored_pairs),
        "--output",
        str(output),
        "--where",
        *rules,
        "--per",
        "subset",
        "day",
    ]
    assert main([*command, "--top-k", "1"]) == 0
    rows = rows_as_written(scored_pairs)
    groups = defaultdict(list)
    for row in rows:
        groups[row["subset"], row["day"]].append(row)
    left = []
    for row in rows:
        group = groups[row["subset"], row["day"]]
        verbosity = quantile([r["rewards"]["helpsteer_verbosity"] for r in group], 0.9)
        if row["score"] >= quantile([r["score"] for r in group], 0.25) and (
            row["rewards"]["helpsteer_verbosity"] < verbosity or row["num_response_tokens"] < 50
        ):
            left.append(row)
    best: dict[str, dict[str, Any]] = {}
    for row in left:
        if row["prompt_id"] not in best or row["score"] > best[row["prompt_id"]]["score"]:
            best[row["prompt_id"]] = row
    expected = [row for row in left if best[row["prompt_id"]] is row]
    assert 20 < len(expected) < len(left) < len(rows)
    assert rows_as_written(output) == expected  # every column, in the order of the source
    counts = json.loads((output / "rules.json").read_text())["rules"]
    assert counts[-1]["left"] == len(expected)
    assert counts[-1]["removed"] == len(left) - len(expected)
    assert sum(rule["removed"] for rule in counts) == len(rows) - len(expected)
    assert verify_output(str(output))[1] == []


@pytest.mark.nightly
def test_real_rollouts_are_cut_by_quantile_and_by_the_best_of_each_prompt(
    real_scores: Path, real_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    output = tmp_path / "kept"
    command = ["filter", str(real_scores), "--output", str(output), "--where", "score > q0.5"]
    assert main([*command, "--top-k", "2"]) == 0
    median = quantile([row["score"] for row in real_rows], 0.5)
    by_prompt = defaultdict(list)
    for row in real_rows:
        if row["score"] > median:
            by_prompt[row["prompt_id"]].append(row)
    best = {r["row_id"] for g in by_prompt.values() for r in sorted(g, key=lambda r: -r["score"])[:2]}
    assert len(real_rows) == 6440
    assert [r["row_id"] for r in rows_as_written(output)] == [
        r["row_id"] for r in real_rows if r["row_id"] in best
    ]


tables = st.lists(
    st.tuples(st.none() | st.integers(-3, 3).map(lambda i: i / 4), st.sampled_from("ab") | st.none()),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60)
@given(tables, st.sampled_from([0.1, 0.25, 0.5, 0.9, 0.99]), st.integers(1, 3), st.booleans())
def test_thresholds_and_the_best_rows_match_their_definition(
    rows: list[tuple[float | None, str | None]], fraction: float, k: int, per: bool
) -> None:
    con = duckdb.connect()
    columns = {"x": [x for x, _ in rows], "g": [g for _, g in rows], "__row": range(len(rows))}
    con.register("given", pa.table({**columns, "x": pa.array(columns["x"], pa.float32())}))
    group = (parse("g", TYPES, None),)
    top = Top(k, group, parse("-x", TYPES, "number"))
    rules = Rules(
        (parse(f"x >= q{fraction}", TYPES), parse("g is not null", TYPES)), group if per else (), top
    )
    relation = "SELECT *, 0 AS __part FROM given"
    thresholds = find_thresholds(con, relation, rules)
    failed = {
        row["__row"]: row["failed"]
        for batch in find_failures(con, relation, rules, thresholds)
        for row in batch.to_pylist()
    }
    passed: dict[str | None, list[int]] = defaultdict(list)
    for i, (x, g) in enumerate(rows):
        values = [y for y, h in rows if y is not None and (h == g or not per)]
        low = x is None or x < quantile(values, fraction)
        assert failed[i] & 3 == low + 2 * (g is None)
        if not failed[i] & 3:
            passed[g].append(i)
    for group_rows in passed.values():
        best = sorted(group_rows, key=lambda i: rows[i][0])[:k]  # type: ignore[arg-type, return-value]
        assert {i for i in group_rows if not failed[i]} == set(best)


def test_quantiles_of_more_than_fits_in_memory_are_exact() -> None:
    con = duckdb.connect()
    con.execute("SET memory_limit = '60MB'; SET threads = 2; SET preserve_insertion_order = false")
    rows = 3_000_000  # 24 MB of values and as much of each sort key, in 60 MB with all of DuckDB's own
    relation = f"SELECT (hash(i) % {rows * 7} / 1000)::DOUBLE AS x FROM range({rows}) r(i)"
    rules = Rules((parse("x > q0.9 and x < q.999", {"x": "DOUBLE"}),))
    (thresholds,) = values_of(con, find_thresholds(con, relation, rules), 10)
    values = np.sort(con.sql(relation).fetchnumpy()["x"])
    assert thresholds == {
        "group": [],
        "q0.9 of x": values[rows * 9 // 10 - 1],
        "q0.999 of x": values[rows * 999 // 1000 - 1],
    }


def test_a_filtered_output_can_be_filtered_and_written_as_lines(scored_pairs: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["filter", str(scored_pairs), "--output", str(first), "--where", "role = 'chosen'"]) == 0
    command = [
        "filter",
        str(first),
        "--output",
        str(second),
        "--where",
        "day = '2026-11-02'",
        "--format",
        "jsonl",
    ]
    assert main(command) == 0
    expected = [
        r for r in rows_as_written(scored_pairs) if r["role"] == "chosen" and r["day"] == "2026-11-02"
    ]
    lines = [json.loads(line) for f in (second / "scores").rglob("*.jsonl") for line in f.open()]
    assert sorted(r["row_id"] for r in lines) == sorted(r["row_id"] for r in expected)
    assert {r["day"] for r in lines} == {"2026-11-02"}
    assert main(["filter", str(second), "--output", str(tmp_path / "x"), "--where", "score > 0"]) == 2


def test_directories_above_an_output_do_not_become_columns(scored_pairs: Path, tmp_path: Path) -> None:
    moved = tmp_path / "score=9" / "subset=x" / "day=y"
    shutil.copytree(scored_pairs, moved)
    kept = []
    for scores, output in ((scored_pairs, tmp_path / "a"), (moved, tmp_path / "role=z")):
        rules = ["--where", "score <= q0.5 and subset != 'x' and day = '2026-11-02'", "--per", "day", "role"]
        assert main(["filter", str(scores), "--output", str(output), *rules]) == 0
        lines = [table.to_pylist() for table in tables_of(output)]
        kept.append(sorted((row["row_id"], row["score"]) for rows in lines for row in rows))
    assert kept[0] == kept[1]
    assert 50 < len(kept[0]) < 80


@pytest.mark.parametrize("task_rows", by_day([30, 1 << 17], {30}))
def test_text_makes_the_output_that_keeping_the_text_would_have_made(
    task_rows: int, tiny_model: Path, formats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derived_output, "_TASK_ROWS", task_rows)  # tasks begin within shards, or hold several
    shutil.copytree(formats, tmp_path / "in")
    options = {"unit_rows": 20, "keep": ["id"], "partition_by": ["subset"]}
    command = ["--where", "score > q0.4", "--text"]
    for name, keep in (("kept", True), ("not", False)):
        score_locally(tiny_model, tmp_path / "in", tmp_path / name, keep_text=keep, **options)
        output = ["--output", str(tmp_path / f"{name}-filtered")]
        assert main(["filter", str(tmp_path / name), *output, *command]) == 0
    kept, added = tmp_path / "kept-filtered", tmp_path / "not-filtered"
    rows = rows_as_written(added)
    assert rows == rows_as_written(kept)
    assert 100 < len(rows) < 200
    assert all(row["response"][0]["content"] for row in rows)
    schemas = [tables_of(output)[0].schema for output in (added, kept)]
    assert schemas[0].equals(schemas[1])
    footers = [footer(schema) for schema in schemas]
    assert [k for k in footers[0] if footers[0][k] != footers[1].get(k)] == ["run_fingerprint"]
    assert verify_output(str(added))[1] == []
    shutil.rmtree(tmp_path / "in")
    assert main(["mine", str(added), "--output", str(tmp_path / "pairs")]) == 0  # without the shards


def test_scores_with_a_column_that_queries_use_themselves_are_refused(
    scored_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = with_columns(scored_pairs, tmp_path / "scores", file_row_number=1)
    command = ["filter", str(scores), "--output", str(tmp_path / "kept"), "--where", "source_row < 3"]
    assert main(command) == 2
    assert "--keep input_file_row_number=file_row_number" in capsys.readouterr().err


def test_text_is_written_as_lines_too(scored_pairs: Path, tmp_path: Path) -> None:
    command = ["filter", str(scored_pairs), "--output", str(tmp_path / "kept"), "--where", "role = 'chosen'"]
    assert main([*command, "--text", "--format", "jsonl"]) == 0
    lines = [json.loads(line) for f in (tmp_path / "kept" / "scores").rglob("*.jsonl") for line in f.open()]
    pairs = {pair["id"]: pair for line in SAMPLE.open() for pair in [json.loads(line)]}
    assert len(lines) == 130
    for line in lines:
        assert line["prompt"] == [{"role": "user", "content": pairs[line["id"]]["prompt"]}]
        assert line["response"] == [{"role": "assistant", "content": pairs[line["id"]]["chosen"]}]


def test_text_of_a_shard_that_is_gone_or_changed_is_refused_and_nothing_is_written(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = tmp_path / "in.jsonl"
    shard.write_bytes(PAIR)
    score_locally(tiny_model, shard, tmp_path / "scores")
    command = ["filter", str(tmp_path / "scores"), "--output", str(tmp_path / "kept"), "--top-k", "1"]
    shard.write_bytes(PAIR * 2)
    assert main([*command, "--text"]) == 2
    assert "the text of its candidates is needed, but the shard changed" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()
    assert main(command) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "scor > 1"], "unknown column scor; did you mean score or source?\n  scor > 1\n  ^"),
        (["--where", "score > 1e9"], "rows passes"),
        ([], "nothing to filter by"),
        (["--where", "score > q0.5", "--per", "nowhere"], "unknown column nowhere"),
        (["--top-k", "0"], "top-k"),
        (["--top-k", "1", "--by", "role"], "expected a number"),
    ],
)
def test_a_wrong_filter_is_refused_and_nothing_is_written(
    scored_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    output = tmp_path / "kept"
    assert main(["filter", str(scored_pairs), "--output", str(output), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_struct_that_is_null_stays_null_beside_a_quantile(scored_pairs: Path, tmp_path: Path) -> None:
    scores = with_columns(
        scored_pairs, tmp_path / "scores", meta=lambda i: None if i % 2 else {"a": i % 3, "b": i}
    )
    rules = ["meta is null or meta.a > 0", "score > -99"]
    for name, last in (("plain", []), ("quantile", ["score >= q0.0"])):
        assert main(["filter", str(scores), "--where", *rules, *last, "--output", str(tmp_path / name)]) == 0
    kept = rows_as_written(tmp_path / "quantile")
    assert kept == rows_as_written(tmp_path / "plain")
    assert {row["meta"] is None for row in kept} == {True, False}


def test_a_condition_that_meets_only_missing_values_is_named(
    scored_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = with_columns(scored_pairs, tmp_path / "copy", quality=pa.scalar(None, pa.float64()), some=float)
    where = ["--where", "some >= 0", "quality > 0.5 or quality < score"]
    command = ["filter", str(copy), "--output", str(tmp_path / "kept"), *where]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert (
        "rows passes: 'quality > 0.5 or quality < score' finds no value in any of them: quality, score"
        in error
    )
    assert "'some >= 0'" not in error
    assert main(["filter", str(copy), "--output", str(tmp_path / "kept"), "--where", "some < 0"]) == 2
    assert "missing" not in capsys.readouterr().err


def test_an_incomplete_output_and_one_given_twice_are_refused(
    scored_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(scored_pairs, copy)
    command = ["--output", str(tmp_path / "kept"), "--where", "score < 100"]
    assert main(["filter", str(scored_pairs), str(copy), *command]) == 2
    assert "is also in another of the outputs" in capsys.readouterr().err
    (copy / "_SUCCESS").unlink()
    assert main(["filter", str(copy), *command]) == 2
    assert "not complete" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


def test_a_part_that_lost_rows_stops_the_filter_and_nothing_is_left(
    scored_pairs: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(scored_pairs, copy)
    part = next((copy / "scores").rglob("*.parquet"))
    other = [p for p in (copy / "scores").rglob("*.parquet") if p != part]
    shutil.copy(min(other, key=lambda p: rows_in(p)), max([part, *other], key=lambda p: rows_in(p)))
    assert main(["filter", str(copy), "--output", str(tmp_path / "kept"), "--where", "score < 100"]) == 1
    assert not (tmp_path / "kept").exists()


def tables_of(output: Path) -> list[pa.Table]:
    return [pq.read_table(part, partitioning=None) for part in (output / "scores").rglob("*.parquet")]


def rows_in(part: Path) -> int:
    return int(pq.ParquetFile(part).metadata.num_rows)


def test_a_quantile_counts_rows_whose_column_v_is_missing(scored_pairs: Path, tmp_path: Path) -> None:
    """`v` is a name that the query of quantiles uses itself."""
    scores = with_columns(scored_pairs, tmp_path / "scores", v=lambda i: i if i % 2 else None)
    for name, where in (("with", "score >= q0.5 and (v is null or v >= 0)"), ("without", "score >= q0.5")):
        assert main(["filter", str(scores), "--where", where, "--output", str(tmp_path / name)]) == 0
    found = [json.loads((tmp_path / name / "rules.json").read_text()) for name in ("with", "without")]
    assert found[0]["thresholds"] == found[1]["thresholds"]
    assert found[0]["rules"][0]["left"] == found[1]["rules"][0]["left"] > 0
