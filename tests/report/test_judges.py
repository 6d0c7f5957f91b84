"""The report and the explanation of what a judge said."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from armo_ray.cli.main import main
from armo_ray.storage.shards import row_id
from tests.support.by_day import by_day
from tests.support.judge_outputs import RATING, judge_locally, write_rows
from tests.support.local import rejects_of, rows_as_written, rows_of
from tests.support.synthetic_outputs import score_synthetically

PARSED_NUMBER = re.compile(r'kind = "number".*', re.DOTALL)


def reported(output: Path, at: Path, *options: str) -> dict[str, Any]:
    assert main(["report", str(output), "--output", str(at), *options]) == 0
    content: dict[str, Any] = json.loads((at / "report.json").read_bytes())
    return content


@pytest.mark.parametrize("name", by_day(["pairs", "ratings", "lists", "contests"], {"ratings", "lists"}))
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


def test_an_output_of_no_judge_and_one_made_from_another_was_not_asked(judged: Path, tmp_path: Path) -> None:
    scored = score_synthetically(tmp_path / "scored", judged / "in")
    assert reported(scored, tmp_path / "a")["asked"] is None
    command = ["filter", str(judged / "pairs"), "--output", str(tmp_path / "f"), "--where", "agreement >= 1"]
    assert main(command) == 0
    assert reported(tmp_path / "f", tmp_path / "b")["asked"] is None


def test_label_mass_is_told_where_probabilities_of_tokens_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def likely(_: str) -> dict[str, Any]:
        """The labels 1 and 3, each with a probability of 0.4."""
        top = [{"token": label, "logprob": math.log(0.4)} for label in ("1", "3")]
        return {"text": "1", "logprobs": {"content": [{**top[0], "top_logprobs": top}]}}

    rows = [{"prompt": "a?", "chosen": "b", "rejected": "c"}]
    judge = PARSED_NUMBER.sub('kind = "tokens"\nvalues = { 1 = 1, 3 = 3 }', RATING)
    judge_locally(judge, likely, write_rows(tmp_path / "in.jsonl", rows), tmp_path / "o")
    mass = reported(tmp_path / "o", tmp_path / "r")["asked"]["verdicts"]["label_mass"]
    assert (mass["candidates"], mass["mean"]) == (2, pytest.approx(0.8))
    assert [row["score"] for row in rows_as_written(tmp_path / "o")] == pytest.approx([2, 2])
    assert main(["explain", str(tmp_path / "o"), "highest"]) == 0
    assert "label mass 0.800" in capsys.readouterr().out


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
