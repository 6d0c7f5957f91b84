"""An ensemble makes one score from the scores of several models, and its metadata describes its rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armo_ray.cli.main import main
from armo_ray.tiny.armorm import write_tiny_model
from armo_ray.tiny.families import write_family
from armo_ray.verify.output import verify_output
from tests.support.by_day import by_day
from tests.support.local import read_table, rows_as_written, score_locally
from tests.support.paths import SAMPLE


@pytest.fixture(scope="module")
def scored(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's first 40 pairs scored by two ArmoRMs and a classifier, and again by one in other units."""
    folder = tmp_path_factory.mktemp("ensemble")
    write_tiny_model(folder / "other", seed=1)
    write_family(folder / "classifier", "classifier")
    (folder / "in.jsonl").write_text(
        "".join(SAMPLE.read_text("utf-8").splitlines(keepends=True)[:40]), "utf-8"
    )
    for name, model in (("one", tiny_model), ("two", folder / "other"), ("three", folder / "classifier")):
        options: dict[str, Any] = {"unit_rows": 20, "keep": ["id"], "max_length": 8192}
        score_locally(model, folder / "in.jsonl", folder / name, **options)
    score_locally(tiny_model, folder / "in.jsonl", folder / "otherwise", unit_rows=7)
    (folder / "fewer.jsonl").write_text(
        "".join(SAMPLE.read_text("utf-8").splitlines(keepends=True)[:20]), "utf-8"
    )
    score_locally(tiny_model, folder / "fewer.jsonl", folder / "fewer")
    return folder


@pytest.mark.parametrize("kind", by_day(["mean", "min", "mean-std"], {"mean-std"}))
def test_the_score_combines_the_standardized_scores_of_all_models(
    kind: str, scored: Path, tmp_path: Path
) -> None:
    outputs = [str(scored / name) for name in ("one", "two", "three")]
    command = ["reweigh", *outputs, "--output", str(tmp_path / "out"), "--ensemble", kind]
    command += ["--risk", "0.5"] if kind == "mean-std" else []
    assert main(command) == 0
    raw = np.array([[row["score"] for row in rows_as_written(Path(output))] for output in outputs])
    values = (raw - raw.mean(axis=1, keepdims=True)) / raw.std(axis=1, keepdims=True)
    expected = {
        "mean": values.mean(0),
        "min": values.min(0),
        "mean-std": values.mean(0) - 0.5 * values.std(0),
    }
    rows = rows_as_written(tmp_path / "out")
    np.testing.assert_allclose([row["score"] for row in rows], expected[kind], rtol=0, atol=1e-5)
    rewards = [[row["rewards"][name] for row in rows] for name in ("one", "two", "three")]
    np.testing.assert_allclose(rewards, values, rtol=0, atol=1e-5)
    assert [row["row_id"] for row in rows] == [row["row_id"] for row in rows_as_written(Path(outputs[0]))]
    assert {row["gating"] and row["gating"]["one"] for row in rows} == {None}
    compared = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert {name: comparison["candidates"] for name, comparison in compared.items()} == {
        "order by one": 80,
        "order by two": 80,
        "order by three": 80,
    }
    assert all(0 < comparison["spearman"] < 1 for comparison in compared.values())
    counts, faults = verify_output(str(tmp_path / "out"))
    assert (counts["scored"], faults) == (80, [])


def test_a_candidate_that_a_model_rejected_is_left_out_and_counted(
    scored: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = [
        row["num_prompt_tokens"] + row["num_response_tokens"] for row in rows_as_written(scored / "one")
    ]
    short = sorted(lengths)[60]
    score_locally(
        tiny_model, scored / "in.jsonl", tmp_path / "short", unit_rows=20, keep=["id"], max_length=short
    )
    command = ["reweigh", str(scored / "two"), str(tmp_path / "short"), "--output", str(tmp_path / "out")]
    assert main([*command, "--ensemble", "mean"]) == 0
    left = sum(length <= short for length in lengths)
    assert read_table(tmp_path / "out").num_rows == left < 80
    assert (
        f"left out: {80 - left} candidates of the first output that another model did not score"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["one"], "give the outputs of several models"),
        (["one", "fewer"], "has other rows than"),
    ],
)
def test_outputs_that_cannot_be_combined_are_refused_and_nothing_is_written(
    names: list[str], message: str, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reweigh", *(str(scored / name) for name in names), "--output", str(tmp_path / "out")]
    assert main([*command, "--ensemble", "min"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [("two", "otherwise"), ("otherwise", "two")])
def test_outputs_in_units_of_other_sizes_are_combined_row_by_row(
    names: tuple[str, str], scored: Path, tmp_path: Path
) -> None:
    command = ["reweigh", *(str(scored / name) for name in names), "--output", str(tmp_path / "out")]
    assert main([*command, "--ensemble", "mean"]) == 0
    raw = [{row["row_id"]: row["score"] for row in rows_as_written(scored / name)} for name in names]
    first, second = (
        {row: (score - np.mean([*own.values()])) / np.std([*own.values()]) for row, score in own.items()}
        for own in raw
    )
    found = {row["row_id"]: row["score"] for row in rows_as_written(tmp_path / "out")}
    expected = {row: (first[row] + second[row]) / 2 for row in first}
    assert found == pytest.approx(expected, abs=1e-5)
    assert verify_output(str(tmp_path / "out"))[1] == []


def test_a_shard_that_changed_between_two_models_is_refused(
    tiny_model: Path, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = tmp_path / "in.jsonl"
    for name, model, rows in (("one", tiny_model, (0, 40)), ("two", scored / "other", (40, 80))):
        lines = SAMPLE.read_text("utf-8").splitlines(keepends=True)
        shard.write_text("".join(lines[slice(*rows)]), "utf-8")
        score_locally(model, shard, tmp_path / name)
    outputs = [str(tmp_path / name) for name in ("one", "two")]
    assert main(["reweigh", *outputs, "--output", str(tmp_path / "e"), "--ensemble", "mean"]) == 2
    assert "has other rows than" in capsys.readouterr().err


def test_an_ensemble_of_reweighed_scores_does_not_apply_their_formula_again(
    scored: Path, tmp_path: Path
) -> None:
    long = ["--length-penalty", "0.01", "--mask", "code_style"]
    for name in ("one", "two"):
        command = ["reweigh", str(scored / name), "--output", str(tmp_path / name), *long]
        assert main(command) == 0
    outputs = [str(tmp_path / name) for name in ("one", "two")]
    assert main(["reweigh", *outputs, "--output", str(tmp_path / "e"), "--ensemble", "mean"]) == 0
    raw = np.array([[row["score"] for row in rows_as_written(Path(output))] for output in outputs])
    values = (raw - raw.mean(axis=1, keepdims=True)) / raw.std(axis=1, keepdims=True)
    scores = [row["score"] for row in rows_as_written(tmp_path / "e")]
    np.testing.assert_allclose(scores, values.mean(0), rtol=0, atol=1e-5)


def test_the_minimum_of_several_scores_takes_fixed_weights_but_no_mask(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = [str(scored / name) for name in ("one", "two")]
    assert main(["reweigh", *outputs, "--output", str(tmp_path / "e"), "--ensemble", "min"]) == 0
    again = ["reweigh", str(tmp_path / "e"), "--output", str(tmp_path / "w")]
    assert main([*again, "--mask", "one"]) == 2
    assert "has no weights to change: give --weight" in capsys.readouterr().err
    assert main([*again, "--weight", "two=2"]) == 0
    rows = rows_as_written(tmp_path / "w")
    np.testing.assert_allclose([r["score"] for r in rows], [2 * r["rewards"]["two"] for r in rows], rtol=1e-6)


def test_other_commands_read_an_ensemble(scored: Path, tmp_path: Path) -> None:
    outputs = [str(scored / name) for name in ("one", "two")]
    assert main(["reweigh", *outputs, "--output", str(tmp_path / "e"), "--ensemble", "min"]) == 0
    assert main(["mine", str(tmp_path / "e"), "--output", str(tmp_path / "pairs"), "--rank-by", "two"]) == 0
    manifest = json.loads((tmp_path / "pairs" / "_SUCCESS").read_text())
    assert manifest
    assert main(["filter", str(tmp_path / "e"), "--output", str(tmp_path / "f"), "--where", "one > 0"]) == 0
    rows = rows_as_written(tmp_path / "f")
    assert rows
    assert min(row["rewards"]["one"] for row in rows) > 0
