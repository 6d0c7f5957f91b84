"""Commands of curation read the outputs of judges, which have no token counts but verdicts."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from armo_ray.cli.main import main
from armo_ray.verify.output import verify_output
from tests.support.by_day import by_day
from tests.support.judge_outputs import PAIR, judge_locally, prefers, write_rows
from tests.support.local import rows_as_written
from tests.support.paths import SAMPLE
from tests.support.synthetic_outputs import score_synthetically

OUTPUTS = ("pairs", "ratings", "lists", "contests")
STRATEGIES = ("best-worst", "best-random", "best-vs-sigma", "all-above-margin", "top-k-bottom-k")


def read(folder: Path) -> list[dict[str, Any]]:
    paths = [path for name in ("data", "scores") for path in sorted((folder / name).rglob("*.parquet"))]
    return [row for path in paths for row in pq.read_table(path, partitioning=None).to_pylist()]


@pytest.mark.parametrize("strategy", by_day(STRATEGIES, {"best-worst", "best-vs-sigma"}))
@pytest.mark.parametrize("name", by_day(["pairs", "contests"], {"contests"}))
def test_every_strategy_mines_pairs_from_verdicts(
    name: str, strategy: str, judged: Path, tmp_path: Path
) -> None:
    command = ["mine", str(judged / name), "--output", str(tmp_path / "o"), "--strategy", strategy]
    assert main(command) == 0
    mined = read(tmp_path / "o")
    assert mined
    assert all(row["score_chosen"] > row["score_rejected"] for row in mined)


@pytest.mark.parametrize("name", by_day(OUTPUTS, {"ratings"}))
def test_verdicts_filter_label_and_reweigh_rows(name: str, judged: Path, tmp_path: Path) -> None:
    rows = rows_as_written(judged / name)
    reward = next(iter(rows[0]["rewards"]))
    commands = {
        "filter": ["--where", "agreement >= 1"],
        "label": ["--temperature", "1"],
        "reweigh": ["--factor", f"{reward}=2"],
        "mine": ["--constraint", "chosen.agreement >= 1", "--keep", "agreement", "--format", "jsonl"],
    }
    for command, options in commands.items():
        assert main([command, str(judged / name), "--output", str(tmp_path / command), *options]) == 0
    assert len(rows_as_written(tmp_path / "filter")) == sum(row["agreement"] == 1 for row in rows)
    reweighed = rows_as_written(tmp_path / "reweigh")
    assert [row["verdicts"] for row in reweighed] == [row["verdicts"] for row in rows]
    assert verify_output(str(tmp_path / "reweigh"))[1] == []
    assert verify_output(str(judged / name))[1] == []


def test_rows_whose_order_decides_can_be_left_out(judged: Path, tmp_path: Path) -> None:
    rows = rows_as_written(judged / "pairs")
    command = ["filter", str(judged / "pairs"), "--output", str(tmp_path / "o"), "--where", "order_flips = 0"]
    assert main(command) == 0
    left = rows_as_written(tmp_path / "o")
    assert [row["row_id"] for row in left] == [row["row_id"] for row in rows if row["order_flips"] == 0]
    assert 0 < len(left) < len(rows)


@pytest.mark.parametrize(
    "command",
    [
        ["mine", "--max-length-ratio", "2"],
        ["mine", "--length-control", "residual"],
        ["reweigh", "--length-penalty", "0.1"],
    ],
)
def test_what_needs_token_counts_is_refused_with_advice(
    command: list[str], judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = command
    assert main([name, str(judged / "pairs"), "--output", str(tmp_path / "o"), *options]) == 2
    told = capsys.readouterr().err
    assert f"{options[0]}" in told
    assert "has no token counts, because a judge has no tokenizer. Leave it out" in told
    assert not (tmp_path / "o").exists()


def test_a_panel_of_judges_and_a_reward_model_votes(judged: Path, tmp_path: Path) -> None:
    model = score_synthetically(tmp_path / "model", judged / "in")
    outputs = [judged / "pairs", judged / "ratings", model]
    for kind in ("majority", "mean"):
        command = ["reweigh", *map(str, outputs), "--output", str(tmp_path / kind), "--ensemble", kind]
        assert main(command) == 0
        assert verify_output(str(tmp_path / kind))[1] == []
    scores = [{row["row_id"]: row["score"] for row in rows_as_written(output)} for output in outputs]
    rows = rows_as_written(tmp_path / "majority")
    by_row: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        by_row.setdefault((row["source"], row["source_row"]), []).append(row)
    assert {len(own) for own in by_row.values()} == {1, 2}
    for own in by_row.values():
        if len(own) == 1:
            assert (own[0]["score"], own[0]["disagreement"]) == (0.5, None)
            continue
        first, second = (row["row_id"] for row in own)
        votes = [(one[first] > one[second]) - (one[first] < one[second]) for one in scores]
        majority = (sum(votes) > 0) - (sum(votes) < 0)
        assert own[0]["score"] == (majority + 1) / 2 == 1 - own[1]["score"]
        against = sum(vote != majority for vote in votes) / 3
        assert own[0]["disagreement"] == pytest.approx(against)
    means = rows_as_written(tmp_path / "mean")
    assert [row["disagreement"] for row in means] == [row["disagreement"] for row in rows]
    assert not {"verdicts", "agreement", "order_flips"} & rows[0].keys()
    where = ["filter", str(tmp_path / "mean"), "--output", str(tmp_path / "f"), "--where", "disagreement = 0"]
    assert main(where) == 0
    assert len(rows_as_written(tmp_path / "f")) == sum(row["disagreement"] == 0 for row in rows)
    assert main(["compare", str(judged / "pairs"), str(model)]) == 0
    assert main(["explain", str(tmp_path / "majority"), "highest"]) == 0
    assert main(["report", str(tmp_path / "majority"), "--output", str(tmp_path / "r")]) == 0


@pytest.mark.nightly
def test_datasets_grow_with_the_nights_of_a_judge(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()][:16]
    commands = {
        "mine": ["--strategy", "all-above-margin"],
        "label": ["--shape", "pairs", "--temperature", "1"],
        "filter": ["--where", "agreement >= 0.9"],
        "reweigh": ["--factor", "win_rate_first=2"],
    }
    for night, rows in enumerate((lines[:8], lines[8:])):
        write_rows(tmp_path / "in" / f"day={night}" / "shard.jsonl", rows)
        judge_locally(PAIR, prefers, tmp_path / "in", tmp_path / "o", unit_rows=6)
        for name, options in commands.items():
            command = [name, str(tmp_path / "o"), "--output", str(tmp_path / name), *options, "--append"]
            assert main(command) == 0
    for name, options in commands.items():
        command = [name, str(tmp_path / "o"), "--output", str(tmp_path / "whole" / name), *options]
        assert main(command) == 0
        grown, whole = (sorted(map(repr, read(tmp_path / at / name))) for at in ("", "whole"))
        assert grown == whole
        assert grown


def test_judges_are_compared_with_each_other(
    judged: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["compare", str(judged / "pairs"), str(judged / "ratings")]) == 0
    rated = {row["row_id"] for row in rows_as_written(judged / "ratings")}
    told = capsys.readouterr().out
    assert str(len(rated)) in told
    assert json.loads((judged / "pairs" / "_SUCCESS").read_text())
