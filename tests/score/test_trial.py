"""What would be rejected for the most part is refused before any replica starts, and can be looked at."""

import gzip
import json
import os
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.model.chat import Chat
from armo_ray.plan.preview import preview
from armo_ray.score import trial
from armo_ray.score.job import prepare
from tests.support.local import config_for, rejects_of, rows_of, score_locally

Row = dict[str, Any]
GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
ODD = {"messages": [{"role": "narrator", "content": "q"}, {"role": "assistant", "content": "a"}]}
FILES = pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.parquet"])


def write(path: Path, rows: list[Row]) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=400)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    return path


@FILES
def test_a_role_that_nobody_knows_is_told_with_a_row_and_the_option(
    name: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard, out = write(tmp_path / name, [GOOD] * 97 + [ODD] * 3), tmp_path / "out"
    options = ["--input", str(shard), "--output", str(out), "--model", str(tiny_model), "--dtype", "float32"]
    assert main(["score", *options]) == 2
    told = capsys.readouterr().err
    assert "3 of the 100 candidates in the first 100 rows would be rejected (3 malformed_row)" in told
    assert f"For example {shard} row 97: malformed_row: unknown role 'narrator'" in told
    assert "--role narrator=user" in told
    assert "--max-reject-fraction 0.03 accepts them" in told
    assert not out.exists()  # the option that helps is another run's
    for accepted in ({"max_reject_fraction": 0.03}, {"role": {"narrator": "user"}}):
        prepare(config_for(tiny_model, shard, tmp_path / next(iter(accepted)), **accepted), check=trial.check)


@FILES
def test_rows_that_winner_sets_aside_do_not_count_as_rejects(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": "2+2?", "a": "4", "b": "5", "winner": "ab"[i % 2]} for i in range(10)]
    shard = write(tmp_path / name, rows)
    options: dict[str, Any] = {
        "column": {"first": "a", "second": "b", "winner": "winner"},
        "winner": {"a": "first", "b": "skip"},
    }
    job, spans = prepare(config_for(tiny_model, shard, tmp_path / "out", **options), check=trial.check)
    found = trial.take(job, spans)
    assert found is not None
    assert [reason for _, _, reason, _ in found.rejects] == ["skipped"] * 5


def test_no_output_of_several_models_is_begun_where_one_is_refused(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard, out = write(tmp_path / "in.jsonl", [GOOD] * 5), tmp_path / "out"
    models = ["--model", str(tiny_model), str(tmp_path / "none")]
    assert main(["score", "--input", str(shard), "--output", str(out), "--dtype", "float32", *models]) == 2
    assert f"{tmp_path / 'none'}: " in capsys.readouterr().err
    assert not out.exists()


@FILES
def test_the_first_thousand_rows_of_all_shards_in_order_are_tried_out(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / f"a-{name}", [GOOD] * 900)
    write(tmp_path / "in" / f"b-{name}", [GOOD] * 80 + [ODD] * 100)
    job, spans = prepare(config_for(tiny_model, tmp_path / "in", tmp_path / "out"), write=False)
    found = trial.take(job, spans)
    assert found is not None
    assert (found.rows, found.candidates, len(found.rejects)) == (1000, 1000, 20)
    assert {(Path(uri).name, reason) for uri, _, reason, _ in found.rejects} == {
        (f"b-{name}", "malformed_row")
    }
    assert [row for _, row, _, _ in found.rejects] == list(range(80, 100))


def test_long_rows_are_tried_out_up_to_a_bound(tiny_model: Path, tmp_path: Path) -> None:
    long = {"prompt": "q", "responses": ["four " * 200_000]}
    shard = write(tmp_path / "in.jsonl", [long] * 8)
    job, spans = prepare(config_for(tiny_model, shard, tmp_path / "out"), write=False)
    found = trial.take(job, spans)
    assert found is not None
    assert found.rows == 5  # of a million characters
    told = trial.refusal(found, config_for(tiny_model, shard, "out", max_reject_fraction=0.5))
    assert told is not None
    assert "5 too_long" in told
    assert "--truncate" in told


def test_what_was_accepted_once_is_not_refused_when_the_run_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.jsonl", [GOOD] * 10)
    score_locally(tiny_model, tmp_path / "in", tmp_path / "out")
    write(tmp_path / "in" / "0.jsonl", [ODD] * 10)
    config = config_for(tiny_model, tmp_path / "in", tmp_path / "out")
    prepare(config, check=trial.check)
    score_locally(tiny_model, tmp_path / "in", tmp_path / "out")
    assert (len(rows_of(tmp_path / "out")), len(rejects_of(tmp_path / "out"))) == (10, 10)
    with pytest.raises(ConfigError, match="10 malformed_row"):
        prepare(config_for(tiny_model, tmp_path / "in", tmp_path / "new"), check=trial.check)


def test_an_unreadable_shard_is_told_as_such(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "b.jsonl", [GOOD] * 3)
    (tmp_path / "in" / "a.jsonl.gz").write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(ConfigError, match=r"1 unreadable_shard.*a\.jsonl\.gz"):
        prepare(config_for(tiny_model, tmp_path / "in", tmp_path / "out"), check=trial.check)


def test_rows_that_kill_the_process_that_tries_them_out_do_not_refuse_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert trial._in_process(lambda: ["a reject"]) == ["a reject"]
    assert trial._in_process(lambda: os.kill(os.getpid(), signal.SIGSEGV)) is None
    assert f"ended with status -{int(signal.SIGSEGV)}" in caplog.text


@FILES
@pytest.mark.parametrize("nested", [False, True])
def test_keys_of_messages_that_are_not_read_are_logged_and_those_of_tools_are_not(
    nested: bool, name: str, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = [
        {"role": "user", "content": "q", "mood": "calm"},
        {"role": "assistant", "content": "a", "weight": 1},
    ]
    tools = [{"type": "function", "function": {"name": "tide_table"}}]
    shard = write(tmp_path / name, [{"sample": {"said": said}, "messages": said, "tools": tools}])
    columns = {"messages": "sample.said" if nested else "messages"}
    caplog.set_level("INFO")
    options = {"column": columns, "tool_calls": "text"}
    prepare(config_for(tiny_model, shard, tmp_path / "out", **options), check=trial.check)
    told = [m for m in caplog.messages if m.startswith("keys of messages")]
    assert told == ["keys of messages that are not read: mood, weight"]


TURNS = [{"role": "user", "content": "q"}]
SAID = [*TURNS, {"role": "assistant", "content": "a"}]


@FILES
@pytest.mark.parametrize(
    ("row", "part", "path"),
    [
        ({"prompt": json.dumps(TURNS), "response": "r"}, "prompt", "prompt[]"),
        ({"prompt": "q", "chosen": json.dumps(SAID), "rejected": "r"}, "chosen", "chosen[]"),
        ({"prompt": "q", "responses": [json.dumps(SAID)]}, "responses", "responses[][]"),
        ({"prompt": str(TURNS), "response": "r"}, "prompt", None),
    ],
    ids=["prompt", "chosen", "responses", "as Python writes it"],
)
def test_messages_that_a_column_of_texts_holds_are_not_scored_as_text_unless_asked(
    row: Row, part: str, path: str | None, name: str, tiny_model: Path, tmp_path: Path
) -> None:
    shard = write(tmp_path / name, [row, {**row, part: ""}] if part == "prompt" else [row])
    lenient = {"max_reject_fraction": 1}
    with pytest.raises(ConfigError, match=rf"every text of {part}.*--column {part}={part}"):
        prepare(config_for(tiny_model, shard, tmp_path / "out", **lenient), check=trial.check)
    as_text = config_for(tiny_model, shard, tmp_path / "text", column={part: part}, **lenient)
    prepare(as_text, check=trial.check)
    if path is not None:
        score_locally(tiny_model, shard, tmp_path / "out", column={part: path}, keep_text=True)
        found = rows_of(tmp_path / "out")[0]
        assert (found["prompt"], found["response"][0]["content"] in ("a", "r")) == (TURNS, True)


@FILES
def test_a_text_that_looks_like_messages_beside_others_is_a_text(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": json.dumps(TURNS), "response": "r"}, {"prompt": "Why?", "response": "r"}]
    prepare(config_for(tiny_model, write(tmp_path / name, rows), tmp_path / "out"), check=trial.check)


@FILES
def test_plan_shows_the_first_conversations_as_the_model_reads_them(
    name: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"id": "a", "prompt": "2+2?", "chosen": "4", "rejected": "<|eot_id|>"},
        {"prompt": "", "chosen": "b"},
    ]
    shard = write(tmp_path / name, [{"id": None, "rejected": None, **row} for row in rows])
    options = ["--input", str(shard), "--output", str(tmp_path / "out"), "--model", str(tiny_model)]
    assert main(["plan", *options, "--dtype", "float32", "--show", "3", "--max-reject-fraction", "0.6"]) == 0
    told = capsys.readouterr().out
    assert "read        chosen=chosen, rejected=rejected, prompt=prompt\nnot read    id\n" in told
    chat = Chat.load(tiny_model)
    text = chat.render_prompt([{"role": "user", "content": "2+2?"}]) + chat.render_response("4")
    assert f"row 0 candidate 0 (chosen): {len(chat.encode(text))} tokens\n{text}\n" in told
    assert "row 0 candidate 1 (rejected): " in told
    assert "tokens, special_token_text\n" in told
    assert "row 1 candidate 0 (chosen): rejected, empty_prompt\n" in told
    assert "row 1 candidate 1" not in told
    assert "refused" not in told
    assert main(["plan", *options, "--dtype", "float32"]) == 0
    assert (
        "refused     input: 2 of the 4 candidates in the first 2 rows would be rejected"
        in capsys.readouterr().out
    )


def test_a_preview_of_compared_answers_shows_the_comparison(tmp_path: Path) -> None:
    from armo_ray.tiny.families import write_family

    write_family(tmp_path / "model", "pairwise")
    shard = write(tmp_path / "in.jsonl", [{"prompt": "2+2?", "responses": ["4", "five", "six"]}])
    job, spans = prepare(
        config_for(tmp_path / "model", shard, tmp_path / "out", family="pairwise"), write=False
    )
    shown = preview(job, spans, 3)["conversations"]
    assert [one["candidate"] for one in shown] == [0, 1, 2]
    assert "[RESPONSE A] five [RESPONSE B] 4" in shown[1]["text"]
