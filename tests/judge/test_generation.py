"""A real model, small as it is, judges: pairs in both orders by several samples, and ratings from log-probabilities."""

from pathlib import Path

import pytest

from armo_ray.verify.output import verify_output
from tests.support.judge_outputs import write_rows
from tests.support.judging import asked, judge, pairs
from tests.support.llm_server import MODEL
from tests.support.local import rows_of

pytest_plugins = ("tests.support.endpoints",)

SAMPLED = """[judge]
unit = "pair"
samples = 2
[[judge.messages]]
role = "user"
text = "Question: {prompt}\\nAnswer A: {a}\\nAnswer B: {b}\\nWhich one is better?"
[judge.parse]
kind = "choice"
pattern = '"(A|B)"'
values = { A = "first", B = "second" }
[judge.sampling]
temperature = 0.7
max_tokens = 48 # the schema lets it write spaces after the verdict
[judge.sampling.response_format]
type = "json_schema"
json_schema = { name = "verdict", schema = { enum = ["A", "B"] } }
"""
TOKENS = """[judge]
unit = "one"
scale = [1, 5]
[[judge.messages]]
role = "user"
text = "Rate this answer from 1 to 5.\\nQuestion: {prompt}\\nAnswer: {response}\\nRating (a digit only):"
[judge.parse]
kind = "tokens"
values = { 1 = 1, 2 = 2, 3 = 3, 4 = 4, 5 = 5 }
[judge.sampling]
temperature = 0
max_tokens = 3
top_logprobs = 20
"""


def twice(real_chat: str, tmp_path: Path, text: str) -> Path:
    """The output of a run; the second time the same command asks nothing."""
    file, out = tmp_path / "judge.toml", tmp_path / "out"
    file.write_text(text)
    inputs = write_rows(tmp_path / "in.jsonl", pairs(8))
    options = ("--model", MODEL, "--unit-rows", "8", "--max-reject-fraction", "1", "--in-flight", "2")
    assert judge(real_chat, file, inputs, out, *options) == 0
    before = {path.name: path.read_bytes() for path in (out / "_journal").rglob("*.jsonl")}
    assert judge(real_chat, file, inputs, out, *options) == 0
    assert {path.name: path.read_bytes() for path in (out / "_journal").rglob("*.jsonl")} == before
    assert sum(content.count(b"\n") for content in before.values()) == asked(out)["requests"]
    assert verify_output(str(out))[1] == []
    return out


@pytest.mark.ray
@pytest.mark.nightly
def test_pairs_are_judged_in_both_orders_by_several_samples(
    real_chat: str, local_ray: str, tmp_path: Path
) -> None:
    out = twice(real_chat, tmp_path, SAMPLED)
    assert asked(out)["requests"] == 8 * 2 * 2
    scores = rows_of(out)
    assert len(scores) == 16
    for row in scores:
        assert [(v["order"], v["sample"]) for v in row["verdicts"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert row["score"] == sum(v["value"] for v in row["verdicts"]) / 4
    assert all(a["score"] + b["score"] == 1 for a, b in zip(scores[::2], scores[1::2], strict=True))
    assert {v["text"].strip() for row in scores for v in row["verdicts"]} == {'"A"', '"B"'}


@pytest.mark.ray
@pytest.mark.nightly
def test_ratings_are_read_from_the_likely_tokens(real_chat: str, local_ray: str, tmp_path: Path) -> None:
    out = twice(real_chat, tmp_path, TOKENS)
    scores = rows_of(out)
    assert len(scores) + len(rows_of(out, "rejects")) == 16
    assert len(scores) >= 8
    for row in scores:
        (verdict,) = row["verdicts"]
        assert 1 <= row["score"] <= 5
        assert row["score"] != round(row["score"]), "an expected value"
        assert 0 < verdict["label_mass"] <= 1.0001
