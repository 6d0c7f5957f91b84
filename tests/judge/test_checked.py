"""A judge that is checked before its run: the result is beside the scores and in the report."""

import json
from pathlib import Path

from armo_ray.cli.main import main
from armo_ray.judge.checked import check_judge
from armo_ray.judge.job import prepare
from armo_ray.judge.options import JudgeOptions
from tests.support.judge_outputs import PAIR, judge_locally, serving, write_rows


def test_the_report_shows_how_the_judge_did_before_the_run(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(4)]
    shard = write_rows(tmp_path / "in.jsonl", rows)
    judge_locally(PAIR, lambda _: {"text": "Better: A"}, shard, tmp_path / "out")
    with serving(lambda _: {"text": "Better: A"}) as url:
        given = {"judge": f"{tmp_path / 'out'}.judge.toml", "endpoint": url, "model": "served"}
        options = {**given, "input": str(shard), "output": str(tmp_path / "out")}
        check_judge(prepare(JudgeOptions.model_validate(options))[0])
    checked = json.loads((tmp_path / "out" / "judge_check.json").read_bytes())
    assert (checked["parsed"], checked["first"], checked["flips"], checked["right"]) == (1, 1, 1, 0.5)
    assert main(["report", str(tmp_path / "out"), "--output", str(tmp_path / "page")]) == 0
    assert json.loads((tmp_path / "page" / "report.json").read_bytes())["asked"]["check"] == checked
    page = (tmp_path / "page" / "report.html").read_text("utf-8")
    assert "prefers the answer shown first" in page
