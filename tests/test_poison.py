"""Rows that kill or fail the process that works on them cost themselves alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from armo_ray.storage.verify import verify_output
from tests.local import rejects_of, rows_of, score_locally, scores_of

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "jobs" / "samples" / "llmbar.jsonl"
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


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "fragile").mkdir()
    (tmp_path / "fragile" / "sitecustomize.py").write_text(FRAGILE)
    return {**os.environ, "PYTHONPATH": f"{tmp_path}/fragile:{ROOT}"}


def run(
    model: Path, shards: Path, out: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "armo_ray.cli", "score", "--model", str(model), "--dtype", "float32"]
    command += ["--input", str(shards), "--output", str(out), "--unit-rows", "50", "--keep-text"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_rows_that_kill_or_fail_a_worker_are_rejected_as_poison_and_all_others_scored(
    tiny_model: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    rows = [json.loads(line) for line in SAMPLE.open()]
    shards = tmp_path / "in"
    shards.mkdir()
    (shards / "sound.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score_locally(tiny_model, shards, tmp_path / "sound", unit_rows=50, keep_text=True)
    poison = {7: "crash the tokenizer", 60: "crash the model", 61: "crash the model", 110: "fail the model"}
    for i, text in poison.items():
        rows[i]["chosen"] = text
    (shards / "sound.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(tiny_model, shards, tmp_path / "out", environment)
    assert done.returncode == 3, done.stderr  # 4 of 256: more than one in a hundred
    rejects = rejects_of(tmp_path / "out")
    assert [(row, reason) for row, _, reason in rejects] == [(i, "poison") for i in poison]
    details = [row["detail"] for row in rows_of(tmp_path / "out", "rejects")]
    assert "a kernel divides by zero" in details[3]
    assert [json.loads(row["raw"])["chosen"] for row in rows_of(tmp_path / "out", "rejects")] == list(
        poison.values()
    )
    assert verify_output(str(tmp_path / "out"))[1] == []
    expected = {
        key: s for key, s in scores_of(tmp_path / "sound").items() if int(key.split(":")[1]) not in poison
    }
    found = scores_of(tmp_path / "out")
    assert {k.split(":", 1)[1] for k in found} == {k.split(":", 1)[1] for k in expected}
