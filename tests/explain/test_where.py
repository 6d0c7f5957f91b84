"""armo-ray explain --where: the rows that satisfy an expression, and what is left out of them."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.curate.test_filter import quantile
from tests.explain.test_explain import explained, refused
from tests.support.local import rows_as_written, score_locally


def row_ids(text: str) -> list[str]:
    return re.findall(r"^row +(\S+):", text, re.M)


def test_all_rows_that_satisfy_the_conditions_are_explained(
    scored_pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_as_written(scored_pairs)
    some = rows[7]["id"]
    expected = [row["row_id"] for row in rows if row["id"] == some]
    text = explained(capsys, scored_pairs, "--where", f"id == '{some}'")
    assert row_ids(text) == expected
    assert text.startswith("matching   2 rows\n")
    assert "left out" not in text
    text = explained(capsys, scored_pairs, "--where", f"id == '{some}'", "role = 'rejected'")
    assert row_ids(text) == [r["row_id"] for r in rows if r["id"] == some and r["role"] == "rejected"]
    assert text.startswith("matching   1 row\n")


def test_rows_beyond_the_first_are_named(scored_pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_as_written(scored_pairs)
    least = quantile([row["score"] for row in rows], 0.9)
    expected = [row["row_id"] for row in rows if row["score"] >= least]
    text = explained(capsys, scored_pairs, "--alone", "--where", "score >= q0.9")
    assert row_ids(text) == expected[:3]
    named = ", ".join(expected[3:8])
    assert f"left out   {named} and {len(expected) - 8} more: --first N explains more\n" in text
    text = explained(capsys, scored_pairs, "--alone", "--where", "score >= q0.9", "--first", "24")
    assert row_ids(text) == expected[:24]
    assert f"left out   {', '.join(expected[24:])}: --first" in text


@pytest.mark.nightly
def test_rows_of_an_incomplete_output_are_found(
    scored_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(scored_pairs, tmp_path / "out")
    expected = {row["row_id"] for row in rows_as_written(scored_pairs)}
    (tmp_path / "out" / "_SUCCESS").unlink()
    lost = next((tmp_path / "out" / "_commits").iterdir())
    lost.unlink()
    text = explained(capsys, tmp_path / "out", "--alone", "--where", "score < 1e9", "--first", "300")
    assert 0 < len(row_ids(text)) < len(expected)
    assert set(row_ids(text)) < expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "id == 'nobody'"], "none of the 260 scored rows satisfies id == 'nobody'"),
        (
            ["--where", "score > 9", "score < 9"],
            "none of the 260 scored rows satisfies score > 9 and score < 9",
        ),
        (["--where", "idd == 'x'"], "unknown column idd; did you mean id"),
        (["--where", "score"], "expected a condition"),
        (["highest", "--where", "score > 0"], "give either ROW_ID or --where"),
        ([], "give either ROW_ID or --where"),
        (["--where", "score > 0", "--first", "0"], "first"),
    ],
)
def test_a_wrong_selection_is_refused(
    arguments: list[Any], message: str, scored_pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, scored_pairs, *arguments)


def test_an_output_without_scores_is_refused(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "response": ""}\n')
    score_locally(tiny_model, tmp_path / "in.jsonl", tmp_path / "out")
    message = refused(capsys, tmp_path / "out", "--where", "score > 0")
    assert "no candidate has been scored yet" in message
