"""Rows that kill or fail the process that works on them cost themselves alone."""

import json
import re
from pathlib import Path

import pytest

from armo_ray.storage.verify import verify_output
from tests.local import rejects_of, rows_of, score_locally
from tests.runs import ROOT, SAMPLE, finish, start

# Python loads a module of this name when it starts: every worker gets a tokenizer and a model that some texts break.
FRAGILE = """
import ctypes
from armo_ray.stages import score
from armo_ray.stages.unit_table import unnest
from armo_ray.text.tokenization import Encoder

encode, call = Encoder.encode, score.Scorer.__call__

def fragile_encode(self, candidates):
    if any("crash the tokenizer" in c.answer for c in candidates):
        ctypes.string_at(0)
    return encode(self, candidates)

def fragile_call(self, table):
    answers = [m["content"] for r in unnest(table["scored"])["response"].to_pylist() for m in r]
    if any("crash the model" in a for a in answers):
        ctypes.string_at(0)
    if any("fail the model" in a for a in answers):
        raise ZeroDivisionError("a kernel divides by zero")
    return call(self, table)

Encoder.encode, score.Scorer.__call__ = fragile_encode, fragile_call
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "poison",
    [{7: "crash the tokenizer"}, {12: "crash the model", 17: "fail the model"}],
    ids=["tokenizer", "model"],
)
def test_rows_that_kill_or_fail_a_worker_are_rejected_as_poison_and_all_others_scored(
    poison: dict[int, str], tiny_model: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in SAMPLE.open()][:30]
    shard, out = tmp_path / "shard.jsonl", tmp_path / "out"
    shard.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score_locally(tiny_model, shard, tmp_path / "sound", unit_rows=20)
    expected = by_place(tmp_path / "sound")
    for i, text in poison.items():
        rows[i]["chosen"] = text
    shard.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "fragile").mkdir()
    (tmp_path / "fragile" / "sitecustomize.py").write_text(FRAGILE)
    options = ("--unit-rows", "20", "--keep-text")
    run = start(tiny_model, shard, out, *options, PYTHONPATH=f"{tmp_path}/fragile:{ROOT}")
    told = finish(run, 3)  # more than one in a hundred
    assert int(re.findall(r"retries=(\d+)", told)[-1]) >= 1
    assert [(row, reason) for row, _, reason in rejects_of(out)] == [(i, "poison") for i in poison]
    rejects = rows_of(out, "rejects")
    assert [json.loads(row["raw"])["chosen"] for row in rejects] == list(poison.values())
    if "fail the model" in poison.values():
        assert "a kernel divides by zero" in rejects[-1]["detail"]
    found = by_place(out)
    assert found.keys() == {place for place in expected if place[0] not in poison}
    assert max(abs(found[place] - expected[place]) for place in found) < 1e-5
    assert verify_output(str(out))[1] == []


def by_place(out: Path) -> dict[tuple[int, int], float]:
    """Scores by row and candidate: the shards differ, so their rows' ids do."""
    return {(row["source_row"], row["candidate"]): row["score"] for row in rows_of(out)}
