"""ProcessBench: a step score for every step, and how often the first wrong step is found."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.evaluate.benchmark_files import scoring
from armo_ray.evaluate.first_errors import Solution, bounds, first_errors, judged
from armo_ray.evaluate.options import EvaluateOptions
from armo_ray.model.families import FAMILIES
from tests.curate.test_families import options_of
from tests.support.by_day import by_day
from tests.support.local import rows_of, score_locally

PROCESS = [name for name, family in FAMILIES.items() if family.by_step]
STEPS = ["6 times 5 is 30.", "6 times 2 is 12.", "So 30 + 12 = 42.", "The answer is 41."]
QUESTION = "What is 6 times 7?"


def first_below(steps: list[float], threshold: float) -> int:
    """The first wrong step as the authors find it, one step after the other."""
    for k, score in enumerate(steps):
        if score < threshold:
            return k
    return -1


def test_a_solution_is_judged_as_step_after_step_would_judge_it() -> None:
    rng = np.random.default_rng(0)
    solutions = []
    for i in range(60):
        steps = rng.integers(0, 4, rng.integers(1, 6)).astype(float).tolist()
        solutions.append(Solution("gsm8k", int(rng.integers(-1, len(steps))), steps, str(i)))
    for threshold in np.arange(-0.5, 4.5, 0.5):
        expected = [first_below(list(s.steps or ()), threshold) == s.label for s in solutions]
        assert judged(bounds(solutions), threshold).tolist() == expected
    found = first_errors(solutions, 2.0, 100, 0)
    right: dict[bool, list[bool]] = {wrong: [] for wrong in (True, False)}
    for s in solutions:
        right[s.label >= 0].append(first_below(list(s.steps or ()), 2.0) == s.label)
    accuracies = [np.mean(right[wrong]) for wrong in (True, False)]
    assert found["subsets"]["gsm8k"]["f1"] == pytest.approx(2 * np.prod(accuracies) / sum(accuracies))
    tried = [first_errors(solutions, t, 100, 0)["f1"] for t in np.arange(0.5, 4)]
    assert found["tuned"]["f1"] == pytest.approx(max(tried))


def test_a_solution_without_scores_counts_as_wrong_and_both_kinds_are_needed() -> None:
    solutions = [Solution("math", 0, None, "a"), Solution("math", -1, [0.9], "b")]
    found = first_errors(solutions, 0.5, 100, 0)
    assert (found["unscored"], found["f1"], found["tuned"]) == (1, 0.0, None)
    with pytest.raises(ConfigError, match="math: 1 solutions have a wrong step and 0 have none"):
        first_errors(solutions[:1], 0.5, 100, 0)


def processbench(length: int = len(STEPS)) -> list[dict[str, Any]]:
    labels = {"gsm8k": [3, -1, 0, 1], "math": [-1, 2, -1]}
    return [
        {"id": f"{subset}-{i}", "problem": f"{QUESTION} ({subset} {i})", "steps": STEPS[:length]}
        | {"final_answer_correct": label < 0, "label": label}
        for subset, own in labels.items()
        for i, label in enumerate(own)
    ]


def prm800k() -> list[dict[str, Any]]:
    rated = [
        {
            "completions": [{"text": text, "rating": 1}],
            "human_completion": None,
            "chosen_completion": 0,
        }
        for text in STEPS
    ]
    return [{"question": {"problem": QUESTION}, "label": {"steps": rated}}]


def shepherd() -> list[dict[str, Any]]:
    texts = {mark: "\n".join(f"Step {k}: {s} {mark}" for k, s in enumerate(STEPS, 1)) for mark in "к+"}
    read = texts["к"].replace(" к", " ки")
    return [{"input": f"{QUESTION} {read}", "label": f"{QUESTION} {texts['+']}", "task": "GSM8K"}]


def scored(directory: Path, name: str, rows: list[dict[str, Any]], options: dict[str, Any]) -> list[Any]:
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = directory / name
    score_locally(directory / "model", directory / f"{name}.jsonl", out, dtype="float32", **options)
    return [row["step_scores"] for row in sorted(rows_of(out), key=lambda row: row["row_id"])]


@pytest.mark.parametrize("family", by_day(PROCESS, ["prm-qwen"]))
def test_every_process_model_scores_each_step_in_order_and_finds_first_errors(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_of(family, tmp_path)
    kept = options | {"keep": ["id", "label"]}
    whole = scored(tmp_path, "whole", processbench(), kept)
    begun = scored(tmp_path, "begun", processbench(2), options)
    # the sum of a step has a token or two of the next one in it, so that the last of a beginning differs
    same = 1 if FAMILIES[family].reads == "response" else 2
    for all_steps, first_steps in zip(whole, begun, strict=True):
        assert (len(all_steps), len(first_steps)) == (len(STEPS), 2)
        assert all_steps[:same] == pytest.approx(first_steps[:same], abs=1e-5)
    assert {len(steps) for steps in scored(tmp_path, "shepherd", shepherd(), options)} == {len(STEPS)}
    assert max(len(steps) for steps in scored(tmp_path, "prm800k", prm800k(), options)) == len(STEPS)

    command = ["evaluate", str(tmp_path / "whole"), "--benchmark", "processbench", "--bootstrap", "100"]
    threshold = float(np.median(np.concatenate(whole)))
    assert main([*command, "--threshold", f"{threshold}", "--output", str(tmp_path / "tables")]) == 0
    assert "Average F1" in capsys.readouterr().out
    found = json.loads((tmp_path / "tables" / "evaluation.json").read_text())
    by_id = {row["id"]: row for row in rows_of(tmp_path / "whole")}
    for subset in ("gsm8k", "math"):
        own = [row for name, row in by_id.items() if name.startswith(subset)]
        match = [
            (row["label"] >= 0, first_below(row["step_scores"], threshold) == row["label"]) for row in own
        ]
        accuracies = [np.mean([hit for wrong, hit in match if wrong is kind]) for kind in (True, False)]
        row = found["subsets"][subset]
        assert [row["error_accuracy"], row["correct_accuracy"]] == pytest.approx(accuracies)
    assert main(command) == 0
    default = 0.0 if FAMILIES[family].reads == "response" else 0.5
    assert f"a step is wrong below {default:.4g}" in capsys.readouterr().out


def test_files_as_they_are_published_are_scored_with_their_labels(tmp_path: Path) -> None:
    (tmp_path / "gsm8k.json").write_text(json.dumps(processbench()))
    settings = {"input": [str(tmp_path / "gsm8k.json")], "model": str(tmp_path / "model")}
    given = {"benchmark": "processbench", "output": str(tmp_path), "scores": [str(tmp_path / "scored")]}
    config, files = scoring(EvaluateOptions.model_validate(given), settings, str(tmp_path))
    assert list(config.keep) == ["id", "label"]
    assert list(files.values()) == [str(tmp_path / "gsm8k.json")]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"problem": QUESTION, "steps": STEPS}) + "\n")
    unlabeled = settings | {"input": [str(tmp_path / "rows.jsonl")]}
    with pytest.raises(ConfigError, match="no column id, which processbench needs"):
        scoring(EvaluateOptions.model_validate(given), unlabeled, str(tmp_path))


def test_scores_of_another_model_and_rows_without_labels_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_of("prm-qwen", tmp_path)
    scored(tmp_path, "rows", processbench(), options)
    command = ["evaluate", str(tmp_path / "rows"), "--benchmark"]
    assert main([*command, "processbench"]) == 2
    assert "no column id: score ProcessBench's files with a process model" in capsys.readouterr().err
    assert main([*command, "labelled", "--threshold", "1"]) == 2
    assert "--threshold: labelled has none" in capsys.readouterr().err
