"""Night after night into one output: what a night left undone is done by the next, and a limit ends any wait."""

import time
from pathlib import Path

import pytest
import ray

from armo_ray.errors import ConfigError
from armo_ray.signals import OutOfTime, limited
from armo_ray.storage.commits import SUCCESS
from armo_ray.verify.output import verify_output
from tests.support.local import score_locally
from tests.support.paths import SAMPLE


def write_day(folder: Path, day: int) -> None:
    shard = folder / f"date=2026-11-{day}" / "a.jsonl"
    shard.parent.mkdir(parents=True)
    shard.write_text("".join(SAMPLE.read_text("utf-8").splitlines(keepends=True)[day : day + 20]), "utf-8")


def test_a_night_does_what_the_one_before_left_undone(tiny_model: Path, tmp_path: Path) -> None:
    days, out = tmp_path / "in" / "date={date}", tmp_path / "out"
    write_day(tmp_path / "in", 19)
    score_locally(tiny_model, days, out, unit_rows=10, date="2026-11-19", days=3)  # two days without shards
    left = sorted((out / "_commits").iterdir())[1]
    left.unlink()
    (out / SUCCESS).unlink()
    write_day(tmp_path / "in", 20)
    with pytest.raises(RuntimeError, match="an earlier run left 1 shards unfinished"):
        score_locally(tiny_model, days, out, unit_rows=10, date="2026-11-20")
    manifest = score_locally(tiny_model, days, out, unit_rows=10, date="2026-11-20", days=2)
    assert left.exists()
    assert manifest["totals"]["scored"] == 80
    assert verify_output(str(out))[1] == []


def test_days_that_are_all_without_shards_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"input .*/date=2026-11-20: no \.parquet"):
        score_locally(tiny_model, tmp_path / "date={date}", tmp_path / "out", date="2026-11-20", days=3)


def test_the_end_of_the_time_reaches_a_run_that_waits_for_ray(local_ray: str) -> None:
    task = ray.remote(lambda: time.sleep(100)).remote()
    with pytest.raises(OutOfTime), limited(2):
        ray.get(task)
    ray.cancel(task, force=True)
