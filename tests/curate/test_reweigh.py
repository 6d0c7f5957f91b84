"""New scores follow from the stored rewards and gates, and their ranking is compared with the old one."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armo_ray import coefficients, vectors
from armo_ray.cli.main import main
from armo_ray.measures.agreement import agreement
from armo_ray.outputs.schema import footer
from armo_ray.verify.output import verify_output
from tests.support.local import read_table, rejects_of, rows_as_written

MASKED = ("helpsteer_verbosity", "code_style")


def reweigh(scores: Path, output: Path, *arguments: str) -> list[dict[str, Any]]:
    assert main(["reweigh", str(scores), "--output", str(output), *arguments]) == 0
    return rows_as_written(output)


def matrix(rows: list[dict[str, Any]], column: str) -> np.ndarray[Any, Any]:
    return np.array([list(row[column].values()) for row in rows], np.float64)


def transform_of(scores: Path) -> np.ndarray[Any, Any]:
    return np.array(footer(read_table(scores).schema)["reward_transform_matrix"])


def expected(rows: list[dict[str, Any]], transform: Any, what: str, other: Any) -> np.ndarray[Any, Any]:
    """The scores that an option should give, in plain NumPy."""
    names = list(rows[0]["rewards"])
    rewards, gating = matrix(rows, "rewards"), matrix(rows, "gating")
    weights = gating @ np.array(other if what == "transform" else transform).T
    if what == "weight":
        weights = np.zeros_like(weights)
        weights[:, names.index("helpsteer_correctness")] = 0.75
        weights[:, names.index("code_style")] = -0.5
    elif what == "factor":
        weights[:, names.index("helpsteer_correctness")] *= 3
    elif what == "mask":
        weights[:, [names.index(name) for name in MASKED]] = 0
    score: np.ndarray[Any, Any] = (rewards * weights).sum(axis=1)
    lengths = np.array([row["num_response_tokens"] for row in rows])
    return score - 0.001 * lengths if what == "length" else score


@pytest.mark.parametrize("what", ["weight", "factor", "mask", "transform", "length"])
def test_scores_are_those_of_the_formula_and_nothing_else_changes(
    what: str, scored_pairs: Path, tmp_path: Path
) -> None:
    other = np.random.default_rng(0).normal(size=(19, 19))
    file = tmp_path / "transform.json"
    file.write_text(json.dumps({"reward_transform_matrix": other.tolist()}))
    arguments = {
        "weight": ["--weight", "helpsteer_correctness=0.75", "code_style=-0.5"],
        "factor": ["--factor", "helpsteer_correctness=3"],
        "mask": ["--mask", *MASKED],
        "transform": ["--transform", str(file)],
        "length": ["--length-penalty", "0.001"],
    }
    before, output = rows_as_written(scored_pairs), tmp_path / "out"
    after = reweigh(scored_pairs, output, *arguments[what])
    scores = expected(before, transform_of(scored_pairs), what, other)
    assert np.abs([row["score"] for row in after] - scores).max() < 1e-5
    assert np.abs([row["score"] for row in before] - scores).max() > 1e-3
    assert [row | {"score": 0} for row in after] == [row | {"score": 0} for row in before]
    assert rejects_of(output) == rejects_of(scored_pairs) != []
    assert verify_output(str(output))[1] == []
    if what != "length":
        table = read_table(output)
        assert np.allclose((vectors(table) * coefficients(table)).sum(axis=1), table["score"], atol=1e-5)
    compared = json.loads((output / "comparison.json").read_text())
    prompts = np.unique([row["prompt_id"] for row in before], return_inverse=True)[1]
    old, new = (np.array([row["score"] for row in rows]) for rows in (before, after))
    plain = agreement({"score": old}, {"score": new}, prompts)
    assert compared["pairs"] == plain["pairs"]
    assert compared["pair_flips"] == plain["columns"]["score"]["pair_flips"]
    assert compared["spearman"] == pytest.approx(plain["columns"]["score"]["spearman"], abs=1e-9)


def test_the_same_formula_gives_the_same_order(scored_pairs: Path, tmp_path: Path) -> None:
    file = tmp_path / "transform.json"
    file.write_text(json.dumps(transform_of(scored_pairs).tolist()))
    reweigh(scored_pairs, tmp_path / "out", "--transform", str(file))
    compared = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert compared["largest_difference"] < 1e-6
    assert compared["spearman"] > 0.9999
    assert compared["top_changes"] == 0


def test_new_scores_are_read_by_the_other_commands_and_not_mixed_with_the_old(
    scored_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    reweigh(scored_pairs, new, "--mask", "code_style")
    again = reweigh(new, tmp_path / "again", "--factor", "code_style=1", "--length-penalty", "0")
    assert np.allclose(
        [r["score"] for r in again], [r["score"] for r in rows_as_written(scored_pairs)], atol=1e-6
    )
    for command in (
        ["filter", "--where", "score > q0.5"],
        ["label", "--shape", "sft", "--no-text"],
        ["mine"],
    ):
        name, *arguments = command
        assert main([name, str(new), "--output", str(tmp_path / name), *arguments]) == 0
        assert main([name, str(new), str(scored_pairs), "--output", str(tmp_path / "mixed"), *arguments]) == 2
        assert "scores of two models cannot be compared" in capsys.readouterr().err
    assert not (tmp_path / "mixed").exists()


def test_reweighing_twice_starts_from_the_models_own_formula_both_times(
    scored_pairs: Path, tmp_path: Path
) -> None:
    reweigh(scored_pairs, tmp_path / "a", "--mask", "code_style", "--length-penalty", "0.1")
    after = reweigh(tmp_path / "a", tmp_path / "b", "--mask", "helpsteer_verbosity")
    assert after == reweigh(scored_pairs, tmp_path / "c", "--mask", "helpsteer_verbosity")
    fingerprints = [footer(read_table(tmp_path / name).schema)["model_fingerprint"] for name in ("b", "c")]
    assert fingerprints[0] == fingerprints[1]


@pytest.mark.nightly
def test_real_rollouts_are_rescored(
    real_scores: Path, real_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    after = reweigh(real_scores, tmp_path / "out", "--mask", *MASKED)
    assert len(after) == 6440
    scores_expected = expected(real_rows, transform_of(real_scores), "mask", None)
    assert np.abs([row["score"] for row in after] - scores_expected).max() < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--mask", "code_stile"],
            "--mask code_stile: this model has no such reward; did you mean code_style?",
        ),
        ([], "nothing to change"),
        (["--weight", "code_style=1", "--mask", "code_style"], "--weight replaces the model's weights"),
        (["--factor", "code_style=2", "--mask", "code_style"], "this reward also has a --factor"),
        (["--factor", "code_style=nan"], "not a finite number"),
        (["--factor", "code_style"], "expected NAME=VALUE"),
        (["--transform", "/nowhere.json"], "/nowhere.json: cannot be read"),
        (["--transform", __file__], "not valid JSON"),
        (["--length-penalty", "inf"], "length-penalty"),
        (["--mask", "code_style", "--format", "jsonl"], "--format jsonl"),
    ],
)
def test_a_wrong_formula_is_refused_and_nothing_is_written(
    scored_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["reweigh", str(scored_pairs), "--output", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", ["[[1, 2], [3, 4]]", '{"reward_transform_matrix": "x"}', "{}", "[[1], [2, 3]]"]
)
def test_a_transform_of_another_shape_is_refused(
    scored_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    file = tmp_path / "transform.json"
    file.write_text(content)
    assert (
        main(["reweigh", str(scored_pairs), "--output", str(tmp_path / "out"), "--transform", str(file)]) == 2
    )
    assert f"--transform {file}" in capsys.readouterr().err


def test_a_damaged_part_stops_the_command_and_nothing_is_left(
    scored_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(scored_pairs, copy)
    part = max((copy / "scores").rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-1000] + bytes(1000))
    assert main(["reweigh", str(copy), "--output", str(tmp_path / "out"), "--mask", "code_style"]) in (1, 2)
    assert "Check it with armo-ray verify" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
