"""Labels equal those that plain Python computes from the scores."""

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.measures.calibration import fit_temperature
from tests.support.local import rows_as_written
from tests.support.paths import ROOT, SAMPLE
from tests.support.synthetic_outputs import score_synthetically, with_columns

REAL = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of 50 prompts, each with two responses in one shard and two in another."""
    folder = tmp_path_factory.mktemp("label-rollouts")
    rows = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()][:50]
    (folder / "in").mkdir()
    for name, extra in (("a", ""), ("b", " Indeed.")):
        lines = [
            {"prompt": row["prompt"], "responses": [row["chosen"] + extra, row["rejected"] + extra]}
            for row in rows
        ]
        (folder / "in" / f"{name}.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines), "utf-8"
        )
    return score_synthetically(folder / "scores", folder / "in")


def label(scores: Path, output: Path, *arguments: str) -> list[dict[str, Any]]:
    assert main(["label", str(scores), "--output", str(output), *arguments]) == 0
    return labelled(output)


def labelled(output: Path) -> list[dict[str, Any]]:
    files = sorted((output / "data").rglob("*.parquet"))
    return [
        row | {"split": f.parent.name}
        for f in files
        for row in pq.read_table(f, partitioning=None).to_pylist()
    ]


def manifest(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "_SUCCESS").read_text())
    return content


def by_prompt(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row["prompt_id"]].append(row)
    return groups


def check_candidates(rows: list[dict[str, Any]], scored: list[dict[str, Any]], temperature: float) -> None:
    source = {row["row_id"]: row for row in scored}
    assert sorted(source) == sorted(row["row_id"] for row in rows)
    for group in by_prompt(rows).values():
        values = np.array([source[row["row_id"]]["score"] for row in group], np.float64)
        odds = np.exp((values - values.max()) / temperature)
        assert np.allclose([row["probability"] for row in group], odds / odds.sum(), atol=1e-6)
        deviation = statistics.stdev(values) if len(set(values)) > 1 else math.inf
        assert np.allclose(
            [row["advantage"] for row in group], (values - values.mean()) / deviation, atol=1e-4
        )
        ranks = {row["rank"]: row["score"] for row in group}
        assert sorted(ranks) == list(range(1, len(group) + 1))
        assert [ranks[i] for i in sorted(ranks)] == sorted(values, reverse=True)
    for row in rows:
        assert row["labels"] == source[row["row_id"]]["rewards"]


def test_labels_of_candidates_are_those_of_plain_python(rollouts: Path, tmp_path: Path) -> None:
    rows = label(rollouts, tmp_path / "out", "--temperature", "0.05", "--test-fraction", "0.3")
    assert {len(group) for group in by_prompt(rows).values()} == {4}
    check_candidates(rows, rows_as_written(rollouts), 0.05)
    texts = {row["prompt"][-1]["content"]: row["prompt_id"] for row in rows}
    assert len(texts) == 50
    assert all(row["response"][0]["role"] == "assistant" for row in rows)
    splits = {name: {row["prompt_id"] for row in rows if row["split"] == name} for name in ("train", "test")}
    assert not splits["train"] & splits["test"]
    assert 5 <= len(splits["test"]) <= 25


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize("name", ["alpaca_eval_rollouts", "llmbar/preferences.jsonl", "hh_harmless"])
def test_labels_of_real_candidates_are_those_of_plain_python(name: str, tmp_path: Path) -> None:
    scores = score_synthetically(tmp_path / "scores", REAL / name)
    scored = rows_as_written(scores)
    check_candidates(label(scores, tmp_path / "out", "--temperature", "0.1"), scored, 0.1)
    best = by_prompt(label(scores, tmp_path / "best", "--shape", "sft"))
    for prompt, group in by_prompt(scored).items():
        assert max(row["score"] for row in group) in [row["score"] for row in best[prompt]]
    if name.startswith("llmbar"):
        pairs = label(scores, tmp_path / "pairs", "--shape", "pairs", "--temperature", "1")
        assert len(pairs) == 419


@pytest.mark.parametrize("per", [(), ("subset", "day")], ids=["corpus", "per-group"])
def test_standardized_labels_have_mean_zero_and_deviation_one(
    per: tuple[str, ...], scored_pairs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    arguments = ["--scale", "standardized", "--temperature", "1", "--keep", "subset", "day", "--no-text"]
    rows = label(scored_pairs, output, *arguments, *(["--per", *per] if per else []))
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in per)].append(list(row["labels"].values()))
    moments = {tuple(m["group"]): m["labels"] for m in manifest(output)["calibration"]["moments"]}
    assert set(moments) == set(groups)
    source = {row["row_id"]: row for row in rows_as_written(scored_pairs)}
    for labels in groups.values():
        assert np.abs(np.mean(labels, axis=0)).max() < 1e-4
        if len(labels) > 1:
            assert np.abs(np.std(labels, axis=0) - 1).max() < 1e-4
    for row in rows:
        moment = moments[tuple(row[name] for name in per)]["code_style"]
        reward = source[row["row_id"]]["rewards"]["code_style"]
        assert row["labels"]["code_style"] == pytest.approx(
            (reward - moment["mean"]) / moment["scale"], abs=1e-4
        )


def test_the_original_scale_has_only_rewards_of_known_scale(scored_pairs: Path, tmp_path: Path) -> None:
    arguments = ["--scale", "original", "--rescale", "code_style=4:1", "--temperature", "1", "--no-text"]
    source = {row["row_id"]: row for row in rows_as_written(scored_pairs)}
    for row in label(scored_pairs, tmp_path / "out", *arguments):
        rewards = source[row["row_id"]]["rewards"]
        known = {name: 5 * value - 0.5 for name, value in rewards.items() if name.startswith("helpsteer_")}
        assert row["labels"] == pytest.approx(known | {"code_style": 4 * rewards["code_style"] + 1}, abs=1e-5)


def labelled_differences(scores: Path) -> list[float]:
    """Score of chosen minus score of rejected, for every labelled row."""
    sides: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for row in rows_as_written(scores):
        sides[row["source"], row["source_row"]][row["role"]] = row["score"]
    return [side["chosen"] - side["rejected"] for side in sides.values()]


def test_labelled_pairs_keep_their_sides_and_fit_the_temperature(
    scored_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for sign in "+-":  # one of the two agrees with more of the labels than it contradicts
        weight = ["--weight", f"helpsteer_correctness={sign}1"]
        assert main(["reweigh", str(scored_pairs), "--output", str(tmp_path / sign), *weight]) == 0
    good, bad = sorted("+-", key=lambda sign: -sum(labelled_differences(tmp_path / sign)))
    assert main(["label", str(tmp_path / bad), "--output", str(tmp_path / "x"), "--shape", "pairs"]) == 2
    assert "too many of 130 labelled pairs contradict the scores" in capsys.readouterr().err
    rows = label(tmp_path / good, tmp_path / "out", "--shape", "pairs")
    temperature = manifest(tmp_path / "out")["calibration"]["temperature"]
    assert temperature == pytest.approx(
        fit_temperature(np.array(labelled_differences(tmp_path / good))), rel=1e-6
    )
    sample = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()]
    assert sorted(
        (r["chosen"][0]["content"].strip(), r["rejected"][0]["content"].strip()) for r in rows
    ) == sorted((row["chosen"].strip(), row["rejected"].strip()) for row in sample)
    for row in rows:
        odds = 1 / (1 + math.exp(-(row["score_chosen"] - row["score_rejected"]) / temperature))
        assert row["probability"] == pytest.approx(odds, abs=1e-6)


def test_pairs_of_unlabelled_responses_have_the_better_one_as_chosen(rollouts: Path, tmp_path: Path) -> None:
    rows = label(
        rollouts, tmp_path / "out", "--shape", "pairs", "--no-text", "--where", "candidate = 0 or score > 0"
    )
    expected = {
        (c["row_id"], r["row_id"])
        for group in by_prompt(rows_as_written(rollouts)).values()
        for c in group
        for r in group
        if c["score"] > r["score"] and all(x["candidate"] == 0 or x["score"] > 0 for x in (c, r))
    }
    assert sorted((row["row_id_chosen"], row["row_id_rejected"]) for row in rows) == sorted(expected)
    assert all(row["probability"] > 0.5 for row in rows)


@settings(max_examples=40)
@given(st.lists(st.floats(-2, 2, allow_subnormal=False), min_size=2, max_size=30))
def test_the_temperature_is_the_likeliest(differences: list[float]) -> None:
    margins = np.array(differences)
    if margins.sum() <= 1e-6 or (margins >= -1e-6).all():
        return

    def likelihood(temperature: float) -> float:
        return -float(np.logaddexp(0, -margins / temperature).sum())

    best = fit_temperature(margins)
    assert all(
        likelihood(best) >= likelihood(best * factor) - 1e-9 for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2)
    )


@pytest.mark.parametrize("differences", [[1.0, 2.0], [-1.0, 0.5], [0.0]])
def test_labels_that_fit_no_temperature_are_refused(differences: list[float]) -> None:
    with pytest.raises(ConfigError, match="give --temperature"):
        fit_temperature(np.array(differences))


def test_the_best_responses_are_those_of_candidates_that_pass(rollouts: Path, tmp_path: Path) -> None:
    arguments = [
        "--shape",
        "sft",
        "--best",
        "2",
        "--where",
        "num_response_tokens < 60",
        "--min-candidates",
        "4",
    ]
    rows = label(rollouts, tmp_path / "out", *arguments)
    expected = []
    for group in by_prompt(rows_as_written(rollouts)).values():
        passing = [row for row in group if row["num_response_tokens"] < 60]
        expected += [row["row_id"] for row in sorted(passing, key=lambda r: -r["score"])[:2]]
    assert sorted(row["row_id"] for row in rows) == sorted(expected)
    assert all([m["role"] for m in row["completion"]] == ["assistant"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "original", "--rescale", "code_stile=1:2"], "did you mean code_style?"),
        (["--scale", "original", "--rescale", "code_style=1"], "expected FACTOR:OFFSET"),
        (["--rescale", "code_style=1:0"], "--rescale works only with --scale original"),
        (["--per", "subset"], "--per works only with --scale standardized"),
        (["--scale", "standardized", "--per", "nowhere"], "unknown column nowhere"),
        (["--scale", "standardized", "--shape", "sft"], "--shape candidates"),
        (["--where", "score > q0.5"], "quantiles are not supported here"),
        (["--keep", "nowhere"], "--keep nowhere"),
        (["--keep", "Subst"], "--keep Subst: no such column in all of the scores; did you mean subset?"),
        (["--keep", "score"], "--keep score: --shape candidates already writes a column of that name"),
        (["--keep", "row_id", "--shape", "sft"], "--keep row_id: --shape sft already writes"),
        (["--temperature", "0"], "temperature"),
        (["--temperature", "inf"], "temperature"),
        (["--test-fraction", "nan"], "test-fraction"),
        (["--scale", "original", "--rescale", "code_style=inf:0"], "expected FACTOR:OFFSET"),
        (["--scale", "original", "--rescale", "code_style=1:nan"], "expected FACTOR:OFFSET"),
    ],
)
def test_a_wrong_option_is_refused_and_nothing_is_written(
    scored_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["label", str(scored_pairs), "--output", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", ["candidates", "sft"])
def test_columns_of_any_name_are_kept_and_change_no_label(shape: str, rollouts: Path, tmp_path: Path) -> None:
    names = ["weight", "mean", "deviation", "place", "split", "kept", "moments", "passes", "i", "value"]
    named = with_columns(
        rollouts, tmp_path / "scores", **dict.fromkeys(names, lambda i: float(-i)), Key="x", ranked="y"
    )
    arguments = ["--shape", shape, "--best", "3", "--scale", "raw", "--temperature", "0.05"]
    rows = label(named, tmp_path / "kept", *arguments, "--keep", *names, "Key", "ranked")
    places = {
        row["row_id"]: float(-i)
        for part in (named / "scores").rglob("*.parquet")
        for i, row in enumerate(pq.read_table(part, partitioning=None).to_pylist())
    }
    expected = label(rollouts, tmp_path / "plain", *arguments)
    assert len(expected) == (200 if shape == "candidates" else 150)
    for row, plain in zip(rows, expected, strict=True):
        kept = dict.fromkeys(names, places[row["row_id"]]) | {"Key": "x", "ranked": "y"}
        assert row == plain | kept | {"split": "train"}  # of labelled(), which knows the file


@pytest.mark.parametrize("arguments", [["--keep", "grade"], ["--where", "grade > 0"]])
def test_a_column_that_only_some_outputs_have_is_refused(
    arguments: list[str], rollouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graded = with_columns(rollouts, tmp_path / "scores", grade=1)
    for outputs in ([rollouts, graded], [graded, rollouts]):
        command = ["label", *map(str, outputs), "--output", str(tmp_path / "out"), *arguments]
        assert main(command) == 2
        assert "grade" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_source_that_changed_is_refused_where_its_text_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = tmp_path / "shard.jsonl"
    shard.write_bytes(SAMPLE.read_bytes())
    scores = score_synthetically(tmp_path / "scores", shard)
    shard.write_bytes(SAMPLE.read_bytes()[:-200])
    command = ["label", str(scores), "--output", str(tmp_path / "out"), "--temperature", "1"]
    assert main(command) == 2
    assert "changed since" in capsys.readouterr().err
    assert main([*command, "--no-text"]) == 0
