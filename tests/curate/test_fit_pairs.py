"""`reweigh --fit-pairs` finds the weights behind labels, measures them on other prompts, and writes their scores."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression

from armo_ray.cli.main import main
from armo_ray.fitting.sampling import hashes_of
from armo_ray.measures.calibration import fit_temperature
from armo_ray.model.recognize import ARMORM_REWARDS
from armo_ray.outputs.schema import footer
from armo_ray.verify.output import verify_output
from tests.support.local import read_table, rows_as_written
from tests.support.synthetic_outputs import commit_again, score_synthetically

PLANTED = {"helpsteer_correctness": 12.0, "code_style": -8.0}
PROMPTS = 400


def labelled(
    folder: Path,
    planted: Mapping[str, float] = PLANTED,
    keep_text: bool = False,
    prompts: int = PROMPTS,
    seed: int = 1,
) -> Path:
    """Scores of random rewards, whose labels follow from planted weights with the noise of the Bradley-Terry model."""
    folder.mkdir()
    answers = [(f"yes {i}", "no, " * (1 + i % 4) + str(i)) for i in range(prompts)]
    rows = [{"prompt": f"{i}?", "chosen": a, "rejected": b} for i, (a, b) in enumerate(answers)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = score_synthetically(folder / "scores", folder / "pairs.jsonl", keep_text)
    for path in (output / "scores").rglob("*.parquet"):
        table = pq.read_table(path, partitioning=None)
        rewards = table["rewards"].to_pylist()
        value = [sum(weight * row[name] for name, weight in planted.items()) for row in rewards]
        roles, prompt_ids = table["role"].to_pylist(), table["prompt_id"].to_pylist()
        for i in range(0, len(roles), 2):  # the two responses of a prompt are neighbors
            noise = np.random.default_rng([seed, int(prompt_ids[i], 16)]).logistic()
            first = value[i] - value[i + 1] + noise > 0
            roles[i : i + 2] = ["chosen", "rejected"] if first else ["rejected", "chosen"]
        place = table.schema.get_field_index("role")
        pq.write_table(table.set_column(place, table.schema.field(place), pa.array(roles)), path)
    return commit_again(output)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled(tmp_path_factory.mktemp("labelled") / "of")


def reweigh(scores: Path, output: Path, *arguments: str) -> dict[str, Any]:
    assert main(["reweigh", str(scores), "--output", str(output), "--fit-pairs", *arguments]) == 0
    found: dict[str, Any] = json.loads((output / "comparison.json").read_text())["fit"]
    return found


def differences(rows: list[dict[str, Any]], values: list[Any]) -> dict[str, Any]:
    """Chosen less rejected, by prompt."""
    sides: dict[str, dict[str, Any]] = {}
    for row, value in zip(rows, values, strict=True):
        sides.setdefault(row["prompt_id"], {})[row["role"]] = np.array(value)
    return {prompt: side["chosen"] - side["rejected"] for prompt, side in sides.items()}


def held_out_prompts(fit: dict[str, Any], prompts: list[str], seed: int = 0) -> set[str]:
    chosen = hashes_of(prompts, "held-out", seed) < 0.2 * 2**64
    assert int(chosen.sum()) == fit["held_out_pairs"]
    return {prompt for prompt, kept in zip(prompts, chosen, strict=True) if kept}


def test_weights_are_those_of_a_logistic_regression_on_the_prompts_that_are_not_held_out(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = reweigh(pairs, tmp_path / "out", str(pairs))
    printed = capsys.readouterr().out
    before, after = rows_as_written(pairs), rows_as_written(tmp_path / "out")
    by_prompt = differences(before, [list(row["rewards"].values()) for row in before])
    held_out = held_out_prompts(fit, list(by_prompt))
    train = np.array([d for prompt, d in by_prompt.items() if prompt not in held_out], np.float64)
    test = np.array([d for prompt, d in by_prompt.items() if prompt in held_out], np.float64)
    spread = np.sqrt((train**2).mean(axis=0))
    penalty = fit["relative_penalty"] * len(train) / 4  # the mean square of standardized differences is 1
    both = np.concatenate((train, -train)) / spread
    model = LogisticRegression(C=1 / (2 * penalty), fit_intercept=False, tol=1e-12, solver="newton-cholesky")
    expected = model.fit(both, np.repeat([1, 0], len(train))).coef_[0] / spread
    weights = np.array([fit["weights"][name] for name in ARMORM_REWARDS])
    assert weights == pytest.approx(expected, rel=1e-6, abs=1e-7)
    largest = sorted(fit["weights"], key=lambda name: -abs(fit["weights"][name]))[:2]
    assert largest == list(PLANTED)
    rewards = np.array([list(row["rewards"].values()) for row in before], np.float64)
    assert np.abs([row["score"] for row in after] - rewards @ weights).max() < 1e-5
    assert [row | {"score": 0} for row in after] == [row | {"score": 0} for row in before]
    assert verify_output(str(tmp_path / "out"))[1] == []
    *_, fitted = fit["held_out"]
    margins = test @ weights
    losses = np.log1p(np.exp(-margins))
    assert fitted["accuracy"] == pytest.approx((margins > 0).mean())
    assert fitted["log_loss"] == pytest.approx(losses.mean())
    assert fitted["log_loss_se"] == pytest.approx(losses.std(ddof=1) / np.sqrt(len(losses)))
    assert "a coin" not in printed
    assert "fitted weights are better than the present score *, by more than one standard error" in printed
    card = (tmp_path / "out" / "README.md").read_text()
    for line in printed.splitlines()[:12]:
        assert line in card


def test_the_table_has_the_present_score_and_what_needs_no_fit(pairs: Path, tmp_path: Path) -> None:
    fit = reweigh(pairs, tmp_path / "out", str(pairs))
    names = ["longest response *", "present score", "present score *", "equal weights *", "fitted weights"]
    rows = {row["name"]: row for row in fit["held_out"]}
    assert list(rows) == names
    before = rows_as_written(pairs)
    lengths = differences(before, [row["num_response_tokens"] for row in before])
    scores = differences(before, [row["score"] for row in before])
    held_out = held_out_prompts(fit, list(scores))
    longer = np.array([np.sign(lengths[prompt]) for prompt in held_out])
    present = np.array([scores[prompt] for prompt in held_out])
    assert rows["longest response *"]["accuracy"] == pytest.approx(((longer + 1) / 2).mean())
    assert rows["present score"]["log_loss"] == pytest.approx(np.log1p(np.exp(-present)).mean(), abs=1e-6)
    assert rows["present score *"]["accuracy"] == rows["present score"]["accuracy"]
    assert rows["present score *"]["log_loss"] != rows["present score"]["log_loss"]
    assert rows["fitted weights"]["accuracy"] > rows["equal weights *"]["accuracy"] + 0.1


def test_a_temperature_makes_scores_log_odds_and_changes_no_order(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weighted = ["--weight", "helpsteer_correctness=1.2", "code_style=-0.8"]
    assert main(["reweigh", str(pairs), "--output", str(tmp_path / "tenth"), *weighted]) == 0
    before = rows_as_written(tmp_path / "tenth")
    capsys.readouterr()
    fit = reweigh(tmp_path / "tenth", tmp_path / "out", str(tmp_path / "tenth"), "--fit", "temperature")
    assert "changes no order" in capsys.readouterr().out
    scores = differences(before, [row["score"] for row in before])
    held_out = held_out_prompts(fit, list(scores))
    train = np.array([d for prompt, d in scores.items() if prompt not in held_out], np.float64)
    assert fit["factor"] == pytest.approx(1 / fit_temperature(train), rel=1e-5)
    assert fit["factor"] == pytest.approx(10, rel=0.5)  # as planted
    assert fit["temperature"] == pytest.approx(1 / fit["factor"])
    after = rows_as_written(tmp_path / "out")
    expected = fit["factor"] * np.array([row["score"] for row in before])
    assert np.array([row["score"] for row in after]) == pytest.approx(expected, abs=1e-4)
    compared = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (compared["pair_flips"], compared["top_changes"]) == (0, 0)
    rows = {row["name"]: row for row in fit["held_out"]}
    assert rows["fitted factor"]["accuracy"] == rows["present score"]["accuracy"]
    assert rows["fitted factor"]["log_loss"] < rows["present score"]["log_loss"] - 0.1
    assert verify_output(str(tmp_path / "out"))[1] == []


def test_a_fit_that_says_nothing_of_held_out_pairs_is_called_a_coin(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = reweigh(pairs, tmp_path / "out", str(pairs), "--fit", "temperature")  # random gates say nothing
    last = fit["held_out"][-1]
    assert last["log_loss"] + last["log_loss_se"] > np.log(2)
    assert "not better than a coin" in capsys.readouterr().out


def test_a_temperature_scales_gates_and_a_penalty_of_length_too(tmp_path: Path) -> None:
    pairs = labelled(tmp_path / "of", dict.fromkeys(ARMORM_REWARDS, 3), prompts=150)
    penalized = tmp_path / "penalized"
    arguments = ["--mask", "code_style", "--length-penalty", "0.01"]
    assert main(["reweigh", str(pairs), "--output", str(penalized), *arguments]) == 0
    fit = reweigh(penalized, tmp_path / "out", str(penalized), "--fit", "temperature")
    metadata = footer(read_table(tmp_path / "out").schema)
    assert metadata["length_penalty"] == pytest.approx(0.01 * fit["factor"])
    assert {round(factor, 6) for factor in metadata["objective_factors"]} == {0, round(fit["factor"], 6)}
    expected = fit["factor"] * np.array([row["score"] for row in rows_as_written(penalized)])
    assert [row["score"] for row in rows_as_written(tmp_path / "out")] == pytest.approx(expected, rel=1e-4)


def test_a_fit_can_be_applied_to_another_output_of_the_model_from_a_file_of_options(
    pairs: Path, tmp_path: Path
) -> None:
    other = labelled(tmp_path / "other", prompts=20)
    config = tmp_path / "fit.toml"
    config.write_text(
        f'scores = "{other}"\noutput = "{tmp_path / "out"}"\nfit_pairs = "{pairs}"\nseed = 3\nfolds = 4\n'
    )
    assert main(["reweigh", str(config)]) == 0
    fit = json.loads((tmp_path / "out" / "comparison.json").read_text())["fit"]
    held_out_prompts(fit, list(differences(rows_as_written(pairs), [0] * 2 * PROMPTS)), seed=3)
    rows = rows_as_written(other)
    weights = np.array([fit["weights"][name] for name in ARMORM_REWARDS])
    rewards = np.array([list(row["rewards"].values()) for row in rows])
    assert [row["score"] for row in rows_as_written(tmp_path / "out")] == pytest.approx(
        rewards @ weights, abs=1e-5
    )
    made = json.loads((tmp_path / "out" / "_run.json").read_text())["made_by"]
    assert made["fit"] == fit


def with_rows(pairs: Path, change: Any) -> Path:
    """The output with some rows of each part changed."""
    for path in (pairs / "scores").rglob("*.parquet"):
        table = pq.read_table(path, partitioning=None)
        pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), table.schema), path)
    return commit_again(pairs)


@pytest.mark.parametrize("keep_text", [True, False])
def test_equal_and_contradicting_pairs_are_left_out_counted_and_named(
    keep_text: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = labelled(tmp_path / "of", keep_text=keep_text, prompts=200)
    same = ("rewards", "gating", "score", "num_response_tokens", *(["response"] if keep_text else []))

    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if rows[0]["source_row"]:
            return rows
        rows[1] |= {name: rows[0][name] for name in same}  # one pair is equal
        for ours, theirs in ((rows[4], rows[2]), (rows[5], rows[3])):  # two contradict each other
            ours |= {name: theirs[name] for name in (*same, "prompt_id")}
            ours["role"] = "chosen" if theirs["role"] == "rejected" else "rejected"
        rows[6]["flags"] = rows[7]["flags"] = ["tie"]
        return rows

    fit = reweigh(with_rows(pairs, change), tmp_path / "out", str(pairs))
    expected = {
        "pairs with equal responses": 1,
        "pairs labelled in both directions": 2,
        "rows labelled as ties": 1,
    }
    assert fit["left_out"] == expected
    assert fit["training_pairs"] + fit["held_out_pairs"] == 200 - 4
    printed = capsys.readouterr().out
    assert (
        "1 pairs with equal responses, 2 pairs labelled in both directions, 1 rows labelled as ties"
        in printed
    )
    assert ("scores and rewards count as equal" in printed) != keep_text


def test_without_token_counts_no_response_is_the_longest_and_none_are_taken_for_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = labelled(tmp_path / "of", prompts=200)

    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            row["num_response_tokens"] = None
        rows[1] |= {name: rows[0][name] for name in ("rewards", "gating", "score")}
        return rows

    fit = reweigh(with_rows(pairs, change), tmp_path / "out", str(pairs))
    assert fit["left_out"] == {}
    assert fit["training_pairs"] + fit["held_out_pairs"] == 200
    assert fit["held_out"][0]["name"] == "present score"
    assert "Left out: nothing." in capsys.readouterr().out


def test_an_ensemble_gets_weights_but_the_least_of_its_scores_has_no_factor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = labelled(tmp_path / "of", dict.fromkeys(ARMORM_REWARDS, 2.0), prompts=100)
    other = score_synthetically(tmp_path / "other", tmp_path / "of" / "pairs.jsonl", seed=7)
    least = ["--output", str(tmp_path / "least"), "--ensemble", "min"]
    assert main(["reweigh", str(pairs), str(other), *least]) == 0
    fit = reweigh(tmp_path / "least", tmp_path / "out", str(tmp_path / "least"))
    assert fit["weights"]["scores"] > abs(fit["weights"]["other"])
    rows = rows_as_written(tmp_path / "out")
    expected = [sum(fit["weights"][name] * value for name, value in row["rewards"].items()) for row in rows]
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-5)
    given = ["--fit-pairs", str(tmp_path / "least"), "--output", str(tmp_path / "no"), "--fit", "temperature"]
    assert main(["reweigh", str(tmp_path / "least"), *given]) == 2
    assert "the min of several scores has no factor: use --fit weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask", "code_style"], "--fit-pairs finds the formula: leave out --mask"),
        (["--ensemble", "mean"], "leave out --ensemble"),
        (["--append"], "--append: a fit is of all pairs"),
        (["--test-fraction", "0.001"], "held-out prompts measure nothing: 10 are needed"),
        (["--test-fraction", "0.95"], r"are too few: 95 pairs of 30 prompts are needed.*--fit temperature"),
    ],
)
def test_a_fit_that_cannot_be_is_refused(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = ["reweigh", str(pairs), "--output", str(tmp_path / "out"), "--fit-pairs", str(pairs), *arguments]
    assert main(given) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_pairs_that_are_none_or_of_another_formula_are_refused(
    pairs: Path, rollouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = score_synthetically(tmp_path / "rollouts", rollouts)
    for command in (["mine", str(others)], ["reweigh", str(pairs), "--mask", "code_style"]):
        assert main([*command, "--output", str(tmp_path / command[0])]) == 0
    messages = {
        "rollouts": "no row has both a chosen and a rejected response that differ; its roles are response",
        "mine": "a dataset that was made from scores, whose labels are the model's own",
        "reweigh": "score the pairs with this model, or reweigh them the same way",
    }
    for name, message in messages.items():
        given = ["--fit-pairs", str(tmp_path / name), "--output", str(tmp_path / "out")]
        assert main(["reweigh", str(pairs), *given]) == 2
        assert message in capsys.readouterr().err
    assert main(["reweigh", str(pairs), "--output", str(tmp_path / "out"), "--fit", "temperature"]) == 2
    assert "--fit works only with --fit-pairs" in capsys.readouterr().err


def test_labels_that_the_rewards_cannot_tell_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = labelled(tmp_path / "noise", {}, prompts=150)
    given = ["reweigh", str(pairs), "--output", str(tmp_path / "out"), "--fit-pairs", str(pairs)]
    assert main(given) == 2
    assert "the rewards do not tell chosen from rejected" in capsys.readouterr().err
    against = labelled(tmp_path / "against", dict.fromkeys(PLANTED, -20.0), prompts=100)
    given = [str(tmp_path / "w"), "--weight", *(f"{name}=1" for name in PLANTED)]
    assert main(["reweigh", str(against), "--output", *given]) == 0
    given = ["--output", str(tmp_path / "out"), "--fit-pairs", str(tmp_path / "w"), "--fit", "temperature"]
    capsys.readouterr()
    assert main(["reweigh", str(tmp_path / "w"), *given]) == 2
    assert "the scores contradict more pairs than they agree with" in capsys.readouterr().err
