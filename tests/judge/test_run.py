"""`armo-ray judge`: what a run asks, counts, rejects, asks again, and refuses."""

import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.verify.output import verify_output
from tests.support.fake_endpoint import control
from tests.support.judge_outputs import PAIR, RATING, write_rows
from tests.support.judging import asked, execute_here, judge, pairs, start, units_of_parts
from tests.support.local import rows_of
from tests.support.runs import commits_of

pytest_plugins = ("tests.support.endpoints", "tests.support.s3_server")
pytestmark = pytest.mark.timeout(300)

PRICES = ("--input-price", "2", "--output-price", "10")
FAULTS: dict[str, dict[str, Any]] = {
    "unparsable": {"reply": {"text": "I cannot say"}},
    "refused": {"reply": {"text": "", "refusal": "I will not"}},
    "cut_off": {"reply": {"text": "Bet", "finish_reason": "length"}},
    "context_overflow": {"status": 400, "text": "maximum context length is 8 tokens"},
    "endpoint_error": {"status": 422, "text": "no"},
}


@pytest.fixture(params=["stages", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.nightly])])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs have Ray at night; by day their stages run in this process."""
    if request.param == "ray":
        request.getfixturevalue("local_ray")
    else:
        monkeypatch.setattr("armo_ray.judge.pipeline.execute", execute_here)


@pytest.fixture
def pair_judge(tmp_path: Path) -> Path:
    path = tmp_path / "pair.toml"
    path.write_text(PAIR)
    return path


@pytest.mark.ray
def test_a_judge_that_always_says_first_gives_one_half_and_what_is_told_is_what_the_server_counted(
    fake_chat: str,
    pair_judge: Path,
    local_ray: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = pairs(20)
    write_rows(tmp_path / "in" / "a.jsonl", rows[:10])
    pq.write_table(pa.Table.from_pylist(rows[10:]), tmp_path / "in" / "b.parquet")
    control(fake_chat, text="Better: A", delay_s=0.05)
    options = ("--unit-rows", "8", "--in-flight", "5", *PRICES)
    out = tmp_path / "out"
    assert judge(fake_chat, pair_judge, tmp_path / "in", out, *options) == 0
    counted, scores = control(fake_chat), rows_of(out)
    assert len(scores) == 40
    assert {row["score"] for row in scores} == {0.5}
    assert {row["order_flips"] for row in scores} == {1.0}
    assert {tuple(row["rewards"].values()) for row in scores} == {(1.0, 0.0)}
    assert {len(row["verdicts"]) for row in scores} == {2}
    assert counted["requests"] == counted["answered"] == len(counted["by_key"]) == 40
    assert 2 <= counted["most_in_flight"] <= 5
    told = asked(out)
    for name in ("prompt_tokens", "completion_tokens"):
        assert told[name] == counted[name] > 0
        assert sum(v[name] for row in scores for v in row["verdicts"]) == 2 * counted[name]
    assert told["requests"] == 40
    cost = (2 * counted["prompt_tokens"] + 10 * counted["completion_tokens"]) / 1e6
    assert told["cost"] == pytest.approx(cost)
    assert verify_output(str(out))[1] == []
    assert judge(fake_chat, pair_judge, tmp_path / "in", out, *options) == 0
    assert control(fake_chat)["requests"] == 40
    check_refusals(fake_chat, pair_judge, tmp_path, capsys)


def check_refusals(url: str, file: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An output belongs to one judge and one model; what is wrong is told before any work."""
    capsys.readouterr()
    other = folder / "other.toml"
    other.write_text(PAIR.replace("{prompt} |", "{prompt}\\n"))
    assert judge(url, other, folder / "in", folder / "out") == 2
    assert "judge_fingerprint" in capsys.readouterr().err
    other.write_text(f"# a comment changes nothing\n{PAIR}")
    assert judge(url, other, folder / "in", folder / "out", "--unit-rows", "8") == 0
    before = control(url)["requests"]
    capsys.readouterr()
    assert judge(url, file, folder / "in", folder / "new", "--model", "gpt") == 2
    assert "does not serve 'gpt', but fake" in capsys.readouterr().err
    assert judge(url, file, folder / "in", folder / "new", "--api-key-env", "NO_SUCH_KEY") == 2
    assert "NO_SUCH_KEY holds no key" in capsys.readouterr().err
    assert not (folder / "new").exists()
    write_rows(folder / "in" / "c.jsonl", [{**row, "prompt": row["prompt"] + "!"} for row in pairs(3)])
    control(url, model="fake-2")
    assert judge(url, file, folder / "in", folder / "out", "--model", "fake-2", "--unit-rows", "8") == 2
    assert "model" in capsys.readouterr().err
    assert control(url)["requests"] == 0
    assert before == 40


def test_failures_are_reasons_of_their_own_and_only_those_that_are_named_are_asked_again(
    fake_chat: str, pair_judge: Path, engine: None, tmp_path: Path
) -> None:
    reasons = dict(zip((3, 8, 9, 14, 21), FAULTS, strict=True))
    inputs = write_rows(tmp_path / "in.jsonl", pairs(25, {i: f"<{reason}>" for i, reason in reasons.items()}))
    out = tmp_path / "out"
    marked = {f"<{reason}>": fault for reason, fault in FAULTS.items()}
    control(fake_chat, text="Better: B", marked=marked)
    options = ("--unit-rows", "44", "--max-reject-fraction", "1", *PRICES)
    assert judge(fake_chat, pair_judge, inputs, out, *options) == 0
    rejects = rows_of(out, "rejects")
    assert {row["source_row"]: row["reason"] for row in rejects} == reasons
    assert all(row["detail"] for row in rejects)
    assert {row["source_row"] for row in rows_of(out)} == set(range(25)) - set(reasons)
    assert {row["score"] for row in rows_of(out)} == {0.5}
    first, units = control(fake_chat), commits_of(out)
    assert asked(out)["completion_tokens"] == first["completion_tokens"]

    del marked["<unparsable>"]
    control(fake_chat, text="Better: tie", marked=marked)
    assert judge(fake_chat, pair_judge, inputs, out, *options, "--retry", "unparsable") == 0
    second, now = control(fake_chat), commits_of(out)
    assert second["answered"] == 2  # with another seed, while what got no reply is in no journal
    assert second["by_key"].keys() & first["by_key"].keys() == unanswered(first)
    assert now.keys() == units.keys()
    assert sum(now[name] != units[name] for name in units) == 1 < len(units)
    assert sorted(units_of_parts(out)) == sorted(Path(name).stem for name in units)
    rejects = rows_of(out, "rejects")
    assert {row["source_row"]: row["reason"] for row in rejects} == {
        i: reason for i, reason in reasons.items() if i != 3
    }
    scores = rows_of(out)
    assert {row["score"] for row in scores} == {0.5}
    assert {row["source_row"] for row in scores if row["order_flips"] == 0} == {3}
    assert verify_output(str(out))[1] == []


def unanswered(counted: dict[str, Any]) -> set[str]:
    found: set[str] = counted["by_key"].keys() - counted["answered_by_key"].keys()
    assert len(found) == 4
    return found


def test_money_that_is_spent_stops_a_run_and_more_of_it_goes_on_where_it_stopped(
    fake_chat: str, pair_judge: Path, engine: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, out = write_rows(tmp_path / "in.jsonl", pairs(60)), tmp_path / "out"
    control(fake_chat, rule="drawn", text="Better: {}", delay_s=0.05)
    options = ("--unit-rows", "30", "--in-flight", "4", "--output-price", "1000")
    assert judge(fake_chat, pair_judge, inputs, out, *options, "--max-cost", "0.06") == 5
    assert "--max-cost is reached; run it again to go on" in capsys.readouterr().err
    spent = control(fake_chat)
    assert 30 <= spent["requests"] < 80  # 2 tokens each
    assert judge(fake_chat, pair_judge, inputs, out, *options, "--max-cost", "10") == 0
    counted = control(fake_chat)
    assert counted["requests"] == len(counted["by_key"]) == 120
    assert asked(out)["cost"] == pytest.approx(1000 * counted["completion_tokens"] / 1e6)
    assert verify_output(str(out))[1] == []


def test_the_tokens_of_requests_in_flight_are_bounded_too(
    fake_chat: str, pair_judge: Path, engine: None, tmp_path: Path
) -> None:
    inputs, out = write_rows(tmp_path / "in.jsonl", pairs(8)), tmp_path / "out"
    control(fake_chat, text="Better: A", delay_s=0.05)
    options = (
        "--in-flight",
        "8",
        "--tokens-in-flight",
        str(3 * 2048),
    )  # the judge's max_tokens, and a prompt
    assert judge(fake_chat, pair_judge, inputs, out, *options) == 0
    counted = control(fake_chat)
    assert (counted["requests"], counted["most_in_flight"]) == (16, 2)


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.parametrize("end", [(("--output-price", "1000", "--max-cost", "0.05"), 5), ((), 1)])
def test_a_run_that_stops_waits_for_replies_that_other_askers_still_get(
    end: tuple[tuple[str, ...], int], fake_chat: str, pair_judge: Path, local_ray: str, tmp_path: Path
) -> None:
    slow = dict.fromkeys(range(0, 30, 10), "<slow>")
    inputs = write_rows(tmp_path / "in.jsonl", pairs(60, slow | {35: "<expired>" if end[1] == 1 else ""}))
    late, expired = {"reply": {"text": "Better: tie", "delay_s": 5}}, {"status": 401}
    control(fake_chat, text="Better: A", delay_s=0.1, marked={"<slow>": late, "<expired>": expired})
    options = ("--unit-rows", "20", "--in-flight", "8")
    out = tmp_path / "out"
    assert judge(fake_chat, pair_judge, inputs, out, *options, *end[0]) == end[1]
    stopped = control(fake_chat)
    assert stopped["answered"] < 120
    control(fake_chat, marked={})
    assert judge(fake_chat, pair_judge, inputs, out, *options) == 0
    again = control(fake_chat)
    assert not again["by_key"].keys() & stopped["answered_by_key"].keys()
    assert stopped["answered"] + again["answered"] == 120
    flipped = {row["source_row"] for row in rows_of(out) if row["order_flips"] == 0}
    assert flipped <= set(slow)
    assert flipped, "slow requests were sent before the stop"


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.parametrize("stop", ["SIGTERM", "--max-runtime"])
def test_a_run_that_is_interrupted_keeps_the_replies_in_flight(
    stop: str, fake_chat: str, pair_judge: Path, tmp_path: Path
) -> None:
    inputs, out = write_rows(tmp_path / "in.jsonl", pairs(60)), tmp_path / "out"
    control(fake_chat, text="Better: A", delay_s=6)
    options = ["--unit-rows", "20", "--in-flight", "8"]
    process = start(
        fake_chat, pair_judge, inputs, out, *options, *(["--max-runtime", "60s"] if stop[0] == "-" else [])
    )
    while control(fake_chat)["requests"] < 8:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    if stop == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=120)
    assert process.returncode == (5 if stop[0] == "-" else 1), log
    assert "waiting 25 s for the replies in flight" in log
    stopped = control(fake_chat)
    assert 8 <= stopped["answered"] == stopped["requests"] < 120
    control(fake_chat, delay_s=0)
    assert judge(fake_chat, pair_judge, inputs, out, *options) == 0
    again = control(fake_chat)
    assert not again["by_key"].keys() & stopped["by_key"].keys()
    assert len(again["by_key"]) + len(stopped["by_key"]) == 120


@pytest.mark.nightly
@pytest.mark.ray
def test_a_key_that_expires_stops_the_run_and_is_in_no_file_and_no_message(
    fake_chat: str,
    pair_judge: Path,
    local_ray: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    monkeypatch.setenv("JUDGE_KEY", key := "sk-3a91-never-shown")
    inputs, out = write_rows(tmp_path / "in.jsonl", pairs(30)), tmp_path / "out"
    options = ("--unit-rows", "20", "--in-flight", "4", "--api-key-env", "JUDGE_KEY")
    expired = {"status": 401, "text": "expired key ", "echo": True}
    echo = {"reply": {"text": "Better: A"}}
    control(fake_chat, text="Better: A", faults=[echo] * 25 + [expired] * 50, delay_s=0.01)
    assert judge(fake_chat, pair_judge, inputs, out, *options) == 1
    told = capfd.readouterr()
    assert "HTTP 401: expired key Bearer ***" in told.err
    assert "(is the key in JUDGE_KEY valid?), then run the same command again" in told.err
    stopped = control(fake_chat)
    assert 25 <= stopped["requests"] <= 25 + 4
    control(fake_chat, text="Better: A", faults=[])
    assert judge(fake_chat, pair_judge, inputs, out, *options) == 0
    assert control(fake_chat)["requests"] == 60 - 25
    told_again = capfd.readouterr()
    assert key not in told.err + told.out + told_again.err + told_again.out
    folder = Path(ray._private.worker._global_node.get_session_dir_path())  # type: ignore[attr-defined]
    files = [p for root in (out, folder / "logs") for p in root.rglob("*") if p.is_file()]
    assert len(files) > 10
    assert [path for path in files if key.encode() in path.read_bytes()] == []


@pytest.mark.nightly
def test_rows_without_a_column_that_the_judge_shows_are_rejected_on_s3_too(
    fake_chat: str, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "armo_ray.judge.pipeline.execute", execute_here
    )  # a Ray that runs has no keys of this S3
    file = tmp_path / "rating.toml"
    file.write_text(RATING.replace("{prompt}", "{prompt} {column:manual}"))
    rows: list[dict[str, Any]] = [
        {"prompt": f"q {i}", "responses": [f"a {i}", f"b {i}"], "manual": f"page {i}"} for i in range(8)
    ]
    rows[2]["manual"] = None
    del rows[5]["manual"]
    inputs = write_rows(tmp_path / "in.jsonl", rows)
    control(fake_chat, rule="rating", text="Rating: {}")
    options = ("--unit-rows", "6", "--max-reject-fraction", "1")
    assert judge(fake_chat, file, inputs, f"{s3}/out", *options) == 0
    rejects = rows_of(f"{s3}/out", "rejects")
    assert {(row["source_row"], row["reason"]) for row in rejects} == {(i, "malformed_row") for i in (2, 5)}
    assert all("column manual" in row["detail"] for row in rejects)
    scores = rows_of(f"{s3}/out")
    assert len(scores) == 12
    assert all(row["score"] == row["verdicts"][0]["value"] for row in scores)
    assert len({row["score"] for row in scores}) > 2
    assert control(fake_chat)["requests"] == 12
    assert judge(fake_chat, file, inputs, f"{s3}/out", *options) == 0
    assert control(fake_chat)["requests"] == 12
    assert verify_output(f"{s3}/out")[1] == []


def test_labels_of_the_input_lie_beside_the_judges_scores(
    fake_chat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("armo_ray.judge.pipeline.execute", execute_here)
    (tmp_path / "rating.toml").write_text(RATING)
    rows = [{"prompt": "q", "first": "a", "second": "b", "w": 2, "y": [1, n]} for n in ("4", "four")]
    write_rows(tmp_path / "in" / "a.jsonl", rows)
    control(fake_chat, text="Rating: 4")
    options = ("--column", "first=first", "second=second", "winner=w", "--winner", "1=first", "2=second")
    given = (*options, "--label", "r=y", "--keep-text")
    assert judge(fake_chat, tmp_path / "rating.toml", tmp_path / "in", tmp_path / "out", *given) == 0
    found = [
        (row["response"][0]["content"], row["labels"]["r"], "label_lost:r" in row["flags"])
        for row in rows_of(tmp_path / "out")
    ]
    assert found == [("b", 4.0, False), ("a", 1.0, False), ("b", None, True), ("a", 1.0, False)]
