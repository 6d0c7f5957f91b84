"""`--retry` touches the units of its own input alone, and an error is never taken for a spent budget."""

import time
from pathlib import Path
from typing import Any

import pytest

from armo_ray.endpoint.limits import Allowance, Shares
from armo_ray.judge.asker import Asker
from armo_ray.judge.job import prepare
from armo_ray.judge.options import JudgeOptions
from armo_ray.judge.retry import set_aside
from armo_ray.judge.stages import Halt, read_calls, write_verdicts
from armo_ray.storage import commits
from armo_ray.storage.store import Store
from tests.support.judge_outputs import PAIR, judge_locally, run_locally, serving, write_rows
from tests.support.local import rejects_of, rows_of


def nights(folder: Path) -> list[Path]:
    return [
        write_rows(
            folder / f"{night}.jsonl",
            [{"prompt": f"{night} {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(3)],
        )
        for night in ("one", "two")
    ]


def test_another_night_of_the_same_output_keeps_its_scores_and_rejects(tmp_path: Path) -> None:
    one, two = nights(tmp_path)
    out = tmp_path / "out"
    for night in (one, two):
        judge_locally(PAIR, lambda text: {"text": "?" if " 1 |" in text else "Better: A"}, night, out)
    assert len(rejects_of(out)) == 4
    with serving(lambda _: {"text": "Better: B"}) as url:
        given = {"judge": f"{out}.judge.toml", "endpoint": url, "model": "served", "output": str(out)}
        options = JudgeOptions.model_validate({**given, "input": str(two), "retry": ["unparsable"]})
        set_aside(*prepare(options), options.retry)
        assert commits.list_commits(Store(str(out)))  # those of the first night
        run_locally(options)
    assert {Path(row["source"]).name for row in rows_of(out, "rejects")} == {"one.jsonl"}
    assert len(rows_of(out)) == 10


def test_an_asker_whose_disk_failed_goes_on_and_tells_of_no_spent_budget(tmp_path: Path) -> None:
    one, _ = nights(tmp_path)
    (tmp_path / "judge.toml").write_text(PAIR)
    (tmp_path / "out").mkdir()
    with serving(lambda _: {"text": "Better: A"}) as url:
        given = {"judge": str(tmp_path / "judge.toml"), "endpoint": url, "model": "served", "unit_rows": 2}
        options = {**given, "input": str(one), "output": str(tmp_path / "out")}
        job, spans = prepare(JudgeOptions.model_validate(options))
        shares = Shares(4)

        async def renew(client: str, holds: int, wants: int, used: Any, pause_s: float) -> Allowance:
            return shares.renew(client, holds, wants, time.monotonic(), used, pause_s)

        asker = Asker(job, renew)
        first, second, *_ = read_calls(spans[0], job)
        (tmp_path / "out" / "_journal").write_text("a file where the folder should be")
        with pytest.raises(OSError, match="_journal"):
            asker(first)
        (tmp_path / "out" / "_journal").unlink()
        assert not isinstance(write_verdicts(asker(second), job), Halt)
        assert not isinstance(write_verdicts(asker(first), job), Halt)
