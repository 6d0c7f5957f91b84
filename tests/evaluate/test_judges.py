"""Benchmarks on the outputs of judges, with their authors' treatment of ties and of replies without a verdict."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armo_ray.cli.main import main
from armo_ray.evaluate.judged import counting_of
from armo_ray.evaluate.published import find_published
from armo_ray.evaluate.subsets import DOMAINS, REWARDBENCH
from tests.support.judge_outputs import LIST, PAIR, RATING, drawn, judge_locally, write_rows

SUBSETS = [name for counts in REWARDBENCH.values() for name in counts]
NOTHING = {"text": "no idea"}


def evaluated(output: Path, *options: str) -> dict[str, Any]:
    at = output.parent / f"{output.name}-evaluated"
    assert main(["evaluate", str(output), "--output", str(at), "--bootstrap", "100", *options]) == 0
    numbers: dict[str, Any] = json.loads((at / "evaluation.json").read_text())
    assert not (at / "length.svg").exists()
    assert numbers["length"] == []
    return numbers


def compares(text: str) -> dict[str, Any]:
    """By a hash of the texts: one of them, a tie, or nothing."""
    return (
        [{"text": f"Better: {t}"} for t in ("A", "B", "A", "B", "tie")][drawn(text, 5)]
        if drawn(text + "?", 6)
        else NOTHING
    )


def said(prompt: str, a: str, b: str) -> float | None:
    """What `compares` says of the first response, shown first; None without a verdict."""
    values = {"Better: A": 1.0, "Better: B": 0.0, "Better: tie": 0.5}
    return values.get(compares(f"{prompt} | {a} | {b}")["text"])


def contest(prompt: str, own: str, other: str, error: float) -> float:
    """What a response gets of a contest in both orders; where one has no verdict, the pair has none."""
    first, second = said(prompt, own, other), said(prompt, other, own)
    return error if first is None or second is None else (first + 1 - second) / 2


def pairs(subsets: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"question {i}",
            "chosen": f"right {i}",
            "rejected": f"wrong {i}",
            "subset": subset,
            "id": i,
        }
        for i, subset in enumerate(subsets)
    ]


def judged_pairs(
    folder: Path, name: str, rows: list[dict[str, Any]], judge: str = PAIR, answer: Any = compares
) -> Path:
    rows_at = write_rows(folder / f"{name}.jsonl", rows)
    judge_locally(judge, answer, rows_at, folder / name, keep=["subset", "id"])
    return folder / name


@pytest.mark.parametrize(("name", "error"), [("o", 0.5), ("rm-r1-o", 0.0)])
def test_rewardbench_counts_ties_and_errors_of_a_judge_as_its_script_does(
    name: str, error: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pairs(SUBSETS * 3)
    found = evaluated(judged_pairs(tmp_path, name, rows), "--benchmark", "rewardbench")
    expected: dict[str, list[float]] = {}
    for row in rows:
        credit = contest(row["prompt"], row["chosen"], row["rejected"], error)
        expected.setdefault(row["subset"], []).append(credit)
    accuracy = {subset: row["accuracy"] for subset, row in found["subsets"].items()}
    assert accuracy == pytest.approx({subset: np.mean(counts) for subset, counts in expected.items()})
    without = [contest(row["prompt"], row["chosen"], row["rejected"], -1) == -1 for row in rows]
    assert (found["unjudged"], found["unscored"]) == (sum(without), 0)
    assert found["judge"]["error"] == error
    assert (
        f"{sum(without)} of {len(rows)} items have responses without a verdict; by" in capsys.readouterr().out
    )


def test_llmbar_counts_errors_wrong_and_half_where_responses_are_rated(tmp_path: Path) -> None:
    rows = pairs(["natural", "adversarial-manual"] * 15)
    compared = evaluated(judged_pairs(tmp_path, "o", rows), "--benchmark", "llmbar")
    wins = [contest(row["prompt"], row["chosen"], row["rejected"], 0.0) for row in rows]
    assert compared["subsets"]["natural"]["accuracy"] == pytest.approx(np.mean(wins[::2]))
    rated = evaluated(judged_pairs(tmp_path, "r", rows, RATING, rates), "--benchmark", "llmbar")
    assert rated["subsets"]["natural"]["accuracy"] == pytest.approx(
        np.mean([by_rating(r) for r in rows[::2]])
    )


def rates(text: str) -> dict[str, Any]:
    """A rating from 1 to 3, or nothing."""
    return {"text": f"Rating: {drawn(text, 4)}"} if drawn(text, 4) else NOTHING


def rating(row: dict[str, Any], response: str) -> int:
    """0 without one."""
    return drawn(f"{row['prompt']} | {response}", 4)


def by_rating(row: dict[str, Any]) -> float:
    chosen, rejected = (rating(row, row[side]) for side in ("chosen", "rejected"))
    return 0.5 if not chosen or not rejected or chosen == rejected else float(chosen > rejected)


def fours() -> list[dict[str, Any]]:
    return [
        {"id": str(i), "prompt": f"question {i}", "subset": domain, "num_correct": 1}
        | {"chosen": [f"right {i}"], "rejected": [f"wrong {i} {k}" for k in range(3)]}
        for i, domain in enumerate(DOMAINS[:-1] * 8)
    ]


def test_rewardbench_2_counts_a_quarter_where_four_ways_have_no_verdict(tmp_path: Path) -> None:
    def picks(text: str) -> dict[str, Any]:
        return {"text": f"[[{'ABCD?'[drawn(text, 5)]}]]"}

    rows = fours()
    found = evaluated(judged_pairs(tmp_path, "o", rows, LIST, picks), "--benchmark", "rewardbench-2")

    def credit(row: dict[str, Any]) -> float:
        shown = [*row["chosen"], *row["rejected"]]
        orders = [shown, shown[::-1]]
        places = [drawn(" | ".join([row["prompt"], *order]), 5) for order in orders]
        if 4 in places:
            return 0.25
        best = [order[place] for order, place in zip(orders, places, strict=True)]
        return best.count(row["chosen"][0]) / 2

    accuracy = {name: row["accuracy"] for name, row in found["subsets"].items()}
    expected = {d: np.mean([credit(row) for row in rows if row["subset"] == d]) for d in DOMAINS[:-1]}
    assert accuracy == pytest.approx(expected)


def test_rewardbench_2_leaves_out_responses_without_a_rating(tmp_path: Path) -> None:
    rows = fours()
    found = evaluated(judged_pairs(tmp_path, "o", rows, RATING, rates), "--benchmark", "rewardbench-2")

    def credit(row: dict[str, Any]) -> float:
        ratings = [rating(row, response) for response in (*row["chosen"], *row["rejected"])]
        best = [i for i, value in enumerate(ratings) if value == max(ratings)]
        return (0 in best) / len(best) if max(ratings) else 0.25

    accuracy = {name: row["accuracy"] for name, row in found["subsets"].items()}
    expected = {d: np.mean([credit(row) for row in rows if row["subset"] == d]) for d in DOMAINS[:-1]}
    assert accuracy == pytest.approx(expected)


def test_rm_bench_counts_the_nine_contests_of_correct_and_wrong_responses(tmp_path: Path) -> None:
    def prefers(text: str) -> dict[str, Any]:
        """As compares, but never nothing, which would leave both responses without a score."""
        return {"text": f"Better: {('A', 'B', 'tie')[drawn(text, 3)]}"}

    domains = ["chat", "code", "math", "safety-refuse", "safety-response"] * 2
    rows = [
        {"id": i, "prompt": f"question {i}", "domain": domain}
        | {"chosen": [f"right {i} {k}" for k in range(3)], "rejected": [f"wrong {i} {k}" for k in range(3)]}
        for i, domain in enumerate(domains)
    ]
    judge_locally(PAIR, prefers, write_rows(tmp_path / "in.jsonl", rows), tmp_path / "o", keep=["domain"])
    found = evaluated(tmp_path / "o", "--benchmark", "rm-bench")

    def won(row: dict[str, Any], i: int, j: int) -> float:
        own, other, values = row["chosen"][i], row["rejected"][j], (1.0, 0.0, 0.5)
        first, second = (
            values[drawn(f"{row['prompt']} | {a} | {b}", 3)] for a, b in ((own, other), (other, own))
        )
        return (first + 1 - second) / 2

    counts = np.array([[[won(row, i, j) for j in range(3)] for i in range(3)] for row in rows])
    math = counts[2::5].mean(axis=0)
    subsets = {name: row["accuracy"] for name, row in found["subsets"].items()}
    assert subsets["math hard"] == pytest.approx(math[np.triu_indices(3, 1)].mean())
    assert subsets["math normal"] == pytest.approx(np.diag(math).mean())
    assert subsets["math easy"] == pytest.approx(math[np.tril_indices(3, -1)].mean())


def test_labelled_rows_count_ties_half_and_errors_wrong(tmp_path: Path) -> None:
    rows = pairs(["one"] * 20)
    found = evaluated(judged_pairs(tmp_path, "o", rows))
    counts = [contest(row["prompt"], row["chosen"], row["rejected"], 0.0) for row in rows]
    assert found["sections"]["Overall"]["accuracy"] == pytest.approx(np.mean(counts))
    assert found["sections"]["Overall"]["longest"] is None


def test_reward_models_count_as_before() -> None:
    assert counting_of("rewardbench", {"model_family": "armorm"}, False) is None
    assert counting_of("rewardbench-2", {"model_family": "judge", "judge": "x"}, False) is not None


@pytest.mark.parametrize(
    ("model", "overall"),
    [("RM-R1-DeepSeek-Distilled-Qwen-32B", (90.85, 83.88)), ("RM-R1-Qwen2.5-Instruct-32B", (91.37, 79.24))],
)
def test_published_figures_of_rm_r1_ship_with_what_its_scripts_do(
    model: str, overall: tuple[float, float]
) -> None:
    entries = [find_published(name, model, None) for name in ("rewardbench", "rm-bench")]
    assert all(entries)
    assert tuple(entry["sections"]["Overall"] for entry in entries if entry) == overall
    sections = [value for name, value in (entries[0] or {})["sections"].items() if name != "Overall"]
    assert np.mean(sections) == pytest.approx(overall[0], abs=0.01)
    assert "copies" in (entries[1] or {})["note"]
