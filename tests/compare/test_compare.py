"""`armo-ray compare`: two outputs over the same rows, against plain NumPy on these rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armo_ray.cli.main import main
from armo_ray.measures.agreement import agreement
from tests.support.local import rows_of
from tests.support.paths import SAMPLE
from tests.support.synthetic_outputs import score_synthetically


def compared(*arguments: Path | str) -> dict[str, Any]:
    at = Path(str(arguments[0])).parent / "compared"
    assert main(["compare", *map(str, arguments), "--output", str(at)]) == 0
    comparison: dict[str, Any] = json.loads((at / "comparison.json").read_text())
    return comparison


def columns(output: Path) -> dict[str, np.ndarray[Any, Any]]:
    rows = rows_of(output)
    rewards = {name: np.array([row["rewards"][name] for row in rows]) for name in rows[0]["rewards"]}
    return {"score": np.array([row["score"] for row in rows])} | rewards


def test_two_outputs_agree_as_their_rows_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (score_synthetically(tmp_path / name, SAMPLE, seed=i) for i, name in enumerate("ab"))
    found = compared(a, b, "--movers", "2")
    rows = rows_of(a)
    prompt = np.unique([row["prompt_id"] for row in rows], return_inverse=True)[1]
    expected = agreement(columns(a), columns(b), prompt)
    assert (found["candidates"], found["only_in_first"], found["only_in_second"]) == (len(rows), 0, 0)
    assert found["columns"].keys() == expected["columns"].keys()
    for name, column in expected["columns"].items():
        for key, value in column.items():
            assert found["columns"][name][key] == pytest.approx(value, abs=1e-6)
    old, new = (np.argsort(np.argsort(columns(output)["score"])) for output in (a, b))
    moved = np.sort(np.abs(new - old))[::-1][:2] / (len(rows) - 1)
    assert [abs(m["new_rank"] - m["old_rank"]) for m in found["movers"]] == pytest.approx(moved.tolist())
    assert found["movers"][0]["response"][0]["content"][:20] in capsys.readouterr().out


def test_movers_have_the_text_that_was_scored(tmp_path: Path) -> None:
    a, b = (score_synthetically(tmp_path / name, SAMPLE, seed=i) for i, name in enumerate("ab"))
    lines = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    for mover in compared(a, b)["movers"]:
        row = lines[mover["source_row"]]
        assert mover["prompt"][-1]["content"] == row["prompt"]
        assert mover["response"][0]["content"] == row["rejected" if mover["candidate"] else "chosen"]


def test_only_common_rows_are_compared_and_the_others_are_counted(tmp_path: Path) -> None:
    few = tmp_path / "in" / "few.jsonl"
    few.parent.mkdir()
    lines = SAMPLE.read_text().splitlines(keepends=True)
    few.write_text("".join(lines[:10]))
    a = score_synthetically(tmp_path / "a", few)
    few.with_name("more.jsonl").write_text("".join(lines[10:15]))
    b = score_synthetically(tmp_path / "b", few.parent / "*.jsonl")
    found = compared(a, b)
    assert (found["candidates"], found["only_in_first"], found["only_in_second"]) == (20, 0, 10)
    assert found["columns"]["score"]["spearman"] == pytest.approx(1)
    assert found["columns"]["score"]["largest_difference"] == 0
    assert found["movers"] == []


def test_movers_of_a_deleted_shard_have_no_text(tmp_path: Path) -> None:
    shard = tmp_path / "in.jsonl"
    shard.write_text("".join(SAMPLE.read_text().splitlines(keepends=True)[:10]))
    a, b = (score_synthetically(tmp_path / name, shard, seed=i) for i, name in enumerate("ab"))
    shard.unlink()
    found = compared(a, b)
    assert [mover["response"] for mover in found["movers"]] == [None] * 5


def test_outputs_that_cannot_be_compared_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = SAMPLE.read_text().splitlines(keepends=True)
    outputs = []
    for i in range(2):
        shard = tmp_path / f"{i}.jsonl"
        shard.write_text(lines[i])
        outputs.append(str(score_synthetically(tmp_path / f"out{i}", shard)))
    assert main(["compare", *outputs]) == 2
    message = capsys.readouterr().err
    assert "have no rows in common" in message
    assert f"the first has {tmp_path}/0.jsonl, for example, and the second {tmp_path}/1.jsonl" in message
    assert main(["compare", outputs[0]]) == 2
    assert "scores: expected two outputs" in capsys.readouterr().err
    assert main(["compare", outputs[0], str(tmp_path)]) == 2
    assert "not an output of armo-ray score" in capsys.readouterr().err
