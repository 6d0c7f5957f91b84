"""The report and the explanation of what a judge said."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from armo_ray.cli.main import main
from armo_ray.storage.shards import row_id
from tests.support.local import rejects_of, rows_as_written, rows_of


def reported(output: Path, at: Path, *options: str) -> dict[str, Any]:
    assert main(["report", str(output), "--output", str(at), *options]) == 0
    content: dict[str, Any] = json.loads((at / "report.json").read_bytes())
    return content


@pytest.mark.parametrize("name", ["pairs", "ratings", "lists", "contests"])
def test_what_was_asked_is_the_sum_over_the_commit_records(name: str, judged: Path, tmp_path: Path) -> None:
    report = reported(judged / name, tmp_path)
    asked = report["asked"]
    entries = [json.loads(path.read_text())["asked"] for path in (judged / name / "_commits").glob("*.json")]
    for key in ("requests", "prompt_tokens", "completion_tokens", "cost"):
        assert asked[key] == pytest.approx(sum(entry[key] for entry in entries))
    assert sum(asked["finish_reasons"].values()) == asked["requests"]
    assert asked["cost"] == pytest.approx(
        asked["requests"] * (10 * 2 + 3 * 8) / 1e6 * (name in ("pairs", "ratings"))
    )
    rows = rows_as_written(judged / name)
    agreement = asked["verdicts"]["agreement"]
    assert agreement["mean"] == pytest.approx(sum(row["agreement"] for row in rows) / len(rows))
    assert sum(agreement["counts"]) == agreement["candidates"] == len(rows)
    assert ("order_flips" in asked["verdicts"]) == (name != "ratings")
    assert report["scored"]["length"] is None
    page = (tmp_path / "report.html").read_text("utf-8")
    assert '<section id="judge"' in page
    assert '<section id="length"' not in page


def test_ways_to_give_no_verdict_are_reasons_of_their_own(judged: Path, tmp_path: Path) -> None:
    report = reported(judged / "ratings", tmp_path, "--by", "day")
    reasons = Counter(reason for _, _, reason in rejects_of(judged / "ratings"))
    assert {entry["reason"]: entry["rejects"] for entry in report["rejects"]} == reasons
    assert {"unparsable", "refused", "cut_off"} == reasons.keys()
    assert report["asked"]["finish_reasons"]["length"] == reasons["cut_off"]
    assert len(report["nights"]["nights"]) == 2


def test_an_output_of_no_judge_and_one_made_from_another_was_not_asked(
    judged: Path, scored_pairs: Path, tmp_path: Path
) -> None:
    assert reported(scored_pairs, tmp_path / "a")["asked"] is None
    command = ["filter", str(judged / "pairs"), "--output", str(tmp_path / "f"), "--where", "agreement >= 1"]
    assert main(command) == 0
    assert reported(tmp_path / "f", tmp_path / "b")["asked"] is None


def test_explain_shows_every_verdict_with_its_text(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = max(rows_as_written(judged / "contests"), key=lambda row: row["score"])
    assert main(["explain", str(judged / "contests"), best["row_id"]]) == 0
    told = capsys.readouterr().out
    assert told.count("\nverdict    ") == len(best["verdicts"]) == 6
    assert "against candidate" in told
    assert "'Better: A'" in told
    assert "siblings   rank" in told


@pytest.mark.parametrize("reason", ["unparsable", "refused", "cut_off"])
def test_explain_says_what_to_do_about_a_missing_verdict(
    reason: str, judged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = next(row for row in rows_of(judged / "ratings", "rejects") if row["reason"] == reason)
    where = row_id(row["source"], row["source_row"], row["candidate"])
    assert main(["explain", str(judged / "ratings"), str(where)]) == 0
    told = capsys.readouterr().out
    assert f"reason     {reason}: " in told
    assert "judge" in told.partition("what to do ")[2].partition("\n")[0]
