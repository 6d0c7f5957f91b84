"""armo-ray explain shows a candidate among those of its prompt, and which objectives separate it from the best."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armo_ray.cli.main import main
from armo_ray.tiny.families import write_family
from tests.explain.test_explain import explained
from tests.support.local import rows_of, score_locally
from tests.support.reference import load_head

PROMPTS = ["How far is the Moon?", "Name a river.", "Add 2 and 2."]
RESPONSES = [
    "Far.",
    "It is 384,400 km away.",
    "The Shannon, in Ireland.",
    "4",
    "I do not know.",
    "Four, I think.",
]


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prompts with responses in two shards, and one with a single response."""
    folder = tmp_path_factory.mktemp("rollouts")
    shards = {"a": (RESPONSES[:4], RESPONSES[1:3]), "b": (RESPONSES[4:], RESPONSES[2:])}
    for name, responses in shards.items():
        rows = [{"prompt": p, "responses": r} for p, r in zip(PROMPTS, responses, strict=False)]
        rows += [{"prompt": PROMPTS[2], "responses": ["4"]}] if name == "a" else []
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def scores(tiny_model: Path, rollouts: Path) -> Path:
    score_locally(tiny_model, rollouts, rollouts.parent / "scored-rollouts")
    return rollouts.parent / "scored-rollouts"


def ranking(text: str) -> dict[str, tuple[int, float]]:
    """Rank and score by row id, in the order of the table."""
    rows = re.findall(r"^ +(\d+) +(-?\d+\.\d+) +\d+  response  (\S+)", text, re.M)
    return {row_id: (int(rank), float(score)) for rank, score, row_id in rows}


def differences(text: str) -> dict[str, float]:
    """The difference that each line of the last table makes, in their order."""
    table = text.partition("\nagainst ")[2]
    rows = re.findall(r"^(\S+(?: more)?) +([+-]\d+\.\d+) +\d+\.\d+%", table, re.M)
    return {name: float(value) for name, value in rows}


def test_a_candidate_is_ranked_among_those_of_its_prompt_in_all_shards(
    scores: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(scores)
    for row in rows:
        text = explained(capsys, scores, row["row_id"])
        others = [r for r in rows if r["prompt_id"] == row["prompt_id"] and r is not row]
        if not others:
            assert "siblings   none: no other candidate of this prompt" in text
            continue
        rank = 1 + sum(r["score"] > row["score"] for r in others)
        best = max(r["score"] for r in others)
        gap = f"{abs(row['score'] - best):.6f} {'below the best' if rank > 1 else 'above the best of the others'}"
        assert f"rank {rank} of {len(others) + 1} by score, {gap}\n" in text
        of_prompt = [r for r in rows if r["prompt_id"] == row["prompt_id"]]
        expected = [r["row_id"] for r in sorted(of_prompt, key=lambda r: -r["score"])]
        assert [*ranking(text)][:5] == expected[:5]
        shown_rank, shown_score = ranking(text)[row["row_id"]]
        assert shown_rank == rank
        assert shown_score == pytest.approx(row["score"], abs=1e-6)
        assert re.search(rf"{row['row_id']}   <- this one$", text, re.M)
        against = re.search(r"^against +(\S+),", text, re.M)
        assert against
        assert next(r["score"] for r in others if r["row_id"] == against[1]) == best
    assert len({row["prompt_id"] for row in rows}) == 3


def test_objectives_are_sorted_by_coefficient_times_the_difference_of_rewards(
    scores: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transform = load_head(tiny_model)["reward_transform_matrix"].numpy()
    rows = {row["row_id"]: row for row in rows_of(scores)}
    own = min(rows.values(), key=lambda row: row["score"])
    other = max((r for r in rows.values() if r["prompt_id"] == own["prompt_id"]), key=lambda r: r["score"])
    rewards = [np.array(list(row["rewards"].values())) for row in (own, other)]
    weights = transform @ np.array(list(own["gating"].values()))
    expected = dict(zip(own["rewards"], (weights * (rewards[0] - rewards[1])).tolist(), strict=True))
    names = sorted(expected, key=lambda name: -abs(expected[name]))
    table = differences(explained(capsys, scores, own["row_id"]))
    assert list(table) == [*names[:7], "12 more"]
    assert [table[name] for name in names[:7]] == pytest.approx([expected[n] for n in names[:7]], abs=2e-6)
    assert sum(table.values()) == pytest.approx(own["score"] - other["score"], abs=1e-5)


@pytest.mark.parametrize("family", ["classifier", "urm", "qrm", "pairwise"])
def test_the_differences_add_up_for_families_with_and_without_gates(
    family: str, rollouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_family(tmp_path / "model", family)
    options: dict[str, Any] = {"family": family} if family == "pairwise" else {}
    score_locally(tmp_path / "model", rollouts / "a.jsonl", tmp_path / "out", **options)
    rows = [row for row in rows_of(tmp_path / "out") if row["source_row"] == 0]
    best = max(row["score"] for row in rows)
    for row in rows:
        if row["score"] < best:
            table = differences(explained(capsys, tmp_path / "out", row["row_id"]))
            assert sum(table.values()) == pytest.approx(row["score"] - best, abs=1e-5)
            sizes = [abs(value) for name, value in table.items() if "more" not in name]
            assert sizes == sorted(sizes, reverse=True)


def test_a_length_penalty_is_one_of_the_differences(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reweigh", str(scores), "--output", str(tmp_path / "out"), "--length-penalty", "0.5"]) == 0
    capsys.readouterr()
    rows = [row for row in rows_of(tmp_path / "out") if row["prompt_id"] == rows_of(scores)[0]["prompt_id"]]
    own, best = (choose(rows, key=lambda row: row["score"]) for choose in (min, max))
    table = differences(explained(capsys, tmp_path / "out", own["row_id"]))
    fewer = best["num_response_tokens"] - own["num_response_tokens"]
    assert next(iter(table)) == "tokens"
    assert table["tokens"] == pytest.approx(0.5 * fewer)
    assert sum(table.values()) == pytest.approx(own["score"] - best["score"], abs=1e-5)


def test_an_ensemble_that_is_no_sum_shows_the_differences_of_its_models(
    scores: Path, rollouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tiny-model", str(tmp_path / "model"), "--seed", "5"]) == 0
    score_locally(tmp_path / "model", rollouts, tmp_path / "second")
    both = ["--output", str(tmp_path / "both"), "--ensemble", "min"]
    assert main(["reweigh", str(scores), str(tmp_path / "second"), *both]) == 0
    capsys.readouterr()
    first, *others = (row for row in rows_of(tmp_path / "both") if row["source_row"] == 0)
    best = max(others, key=lambda row: row["score"])
    table = differences(explained(capsys, tmp_path / "both", first["row_id"]))
    expected = {name: value - best["rewards"][name] for name, value in first["rewards"].items()}
    assert table == pytest.approx(expected, abs=1e-6)


def test_siblings_that_cannot_be_read_are_not_shown_and_can_be_left_out(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(scores, tmp_path / "out")
    rows = rows_of(scores)
    own = rows[0]
    part = next(p for p in (tmp_path / "out" / "scores").iterdir() if own["row_id"][:16] not in p.name)
    part.unlink()
    text = explained(capsys, tmp_path / "out", own["row_id"])
    assert "siblings   not shown: " in text
    assert part.name in text
    assert "siblings" not in explained(capsys, tmp_path / "out", own["row_id"], "--alone")
