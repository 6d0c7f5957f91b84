"""Units that are asked about at once share slots, and what ends the requests of one ends those of the other."""

import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from armo_ray.endpoint.limits import Allowance, Shares
from armo_ray.judge.asker import Asker
from armo_ray.judge.job import prepare
from armo_ray.judge.options import JudgeOptions
from armo_ray.judge.stages import Halt, read_calls, write_verdicts
from armo_ray.score.stages.unit_block import Header
from tests.support.fake_endpoint import control
from tests.support.judge_outputs import RATING, write_rows

pytest_plugins = ("tests.support.endpoints",)

SLOW_S = 1.0


@contextmanager
def asker_of(
    url: str, folder: Path, prompts: list[str], slots: int
) -> Iterator[tuple[Asker, list[pa.Table]]]:
    """An asker that sends nothing before all prompts wait, and two units of a prompt each row."""
    (folder / "rating.toml").write_text(RATING)
    inputs = write_rows(folder / "in.jsonl", [{"prompt": text, "response": "yes"} for text in prompts])
    given = {"judge": str(folder / "rating.toml"), "endpoint": f"{url}/v1", "model": "fake"}
    places = {"input": str(inputs), "output": str(folder / "out"), "unit_rows": len(prompts) // 2}
    job, spans = prepare(JudgeOptions.model_validate(given | places))
    shares = Shares(0)

    async def renew(client: str, holds: int, wants: int, used: Any, pause_s: float) -> Allowance:
        if wants == len(prompts):
            shares.limit = slots
        return shares.renew(client, holds, wants, time.monotonic(), used, pause_s)

    asker = Asker(job, renew)
    try:
        yield asker, list(read_calls(spans[0], job))
    finally:
        asker.close()


def test_a_unit_uses_the_slots_that_the_last_replies_of_another_leave(fake_chat: str, tmp_path: Path) -> None:
    slow = {"reply": {"text": "Rating: 7", "delay_s": SLOW_S}}
    control(fake_chat, text="Rating: 5", delay_s=0.01, marked={"<slow>": slow})
    prompts = ["<slow>", *(f"Question {i}?" for i in range(7))]
    with asker_of(fake_chat, tmp_path, prompts, 2) as (asker, units), ThreadPoolExecutor(2) as threads:
        idle_since = asker.ended
        done = list(threads.map(asker, units))
        counted = control(fake_chat)
        assert max(counted["arrived"]) < max(counted["left"])  # that of the slow one
        assert (counted["requests"], counted["most_in_flight"]) == (8, 2)
        results = [write_verdicts(table, asker.job) for table in done]
    assert [result.record.scored for result in results if not isinstance(result, Halt)] == [4, 4]
    seconds = [Header.of(table).seconds for table in done]
    spent = sum(step["wait"] + step["model"] for step in seconds)
    assert spent == pytest.approx(asker.ended - idle_since)  # no time counts twice


def test_units_that_are_left_as_another_was_refused_tell_why(fake_chat: str, tmp_path: Path) -> None:
    control(fake_chat, text="Rating: 5", faults=[*({"reply": {}},) * 3, {"status": 401, "text": "expired"}])
    prompts = [f"Question {i}?" for i in range(12)]
    with asker_of(fake_chat, tmp_path, prompts, 1) as (asker, units), ThreadPoolExecutor(2) as threads:
        halts = [write_verdicts(table, asker.job) for table in threads.map(asker, units)]
        assert [halt.kind for halt in halts if isinstance(halt, Halt)] == ["refused", "refused"]
        assert control(fake_chat)["answered"] == 3
        control(fake_chat, key="another")
        again = asker(units[1])
    assert isinstance(write_verdicts(again, asker.job), Halt)


def test_an_error_of_one_unit_is_told_for_the_other_too_and_both_go_on_later(
    fake_chat: str, tmp_path: Path
) -> None:
    control(fake_chat, text="Rating: 5", delay_s=0.02)
    prompts = [f"Question {i}?" for i in range(12)]
    with asker_of(fake_chat, tmp_path, prompts, 1) as (asker, units), ThreadPoolExecutor(2) as threads:
        (tmp_path / "out" / "_journal").write_text("a file where the folder should be")
        work = [threads.submit(asker, unit) for unit in units]
        failures = [each.exception() for each in work]
        assert all(isinstance(failure, OSError) for failure in failures)
        (tmp_path / "out" / "_journal").unlink()
        assert [len(pickle.loads(t["header"][0].as_py()).extra) for t in threads.map(asker, units)] == [1, 1]
