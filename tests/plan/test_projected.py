"""armo-ray plan --rows, --tokens-per-row and --gpu: work that is not there yet, and GPUs that were not measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armo_ray.cli.main import main
from armo_ray.engine.flops import flops, shape_of
from armo_ray.engine.reward_model import RewardModel
from armo_ray.plan.intervals import Figure
from armo_ray.plan.options import GPUS
from armo_ray.plan.projected import estimated_speed, flops_per_token
from armo_ray.score.config import load_config
from jobs.measure.synthetic import write_shards


def planned(capsys: pytest.CaptureFixture[str], model: Path, *flags: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["plan", "--model", str(model), "--json", *flags]) == 0
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)
    return figures


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path / "in", candidates=2000, shards=4)
    return tmp_path / "in"


def test_rows_like_those_of_an_input_are_as_many_times_its_tokens(
    tiny_model: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = planned(capsys, tiny_model, "--input", str(shards), "--output", str(tmp_path / "o"))
    rows = whole["to_do"]["rows"][0]
    flags = ("--input", str(shards), "--output", str(tmp_path / "o"), "--rows", f"{rows * 1000:.0e}")
    more = planned(capsys, tiny_model, *flags)
    times = more["to_do"]["rows"][0] / rows
    assert more["to_do"]["counted"] == "projected"
    for name in ("candidates", "tokens", "computed"):
        figure = Figure(*more["to_do"][name])
        assert figure.low <= times * whole["to_do"][name][0] <= figure.high
        assert figure.high < 1.5 * figure.low


def test_a_speed_that_is_estimated_is_the_share_of_the_peak_that_the_engine_counts(tiny_model: Path) -> None:
    """The estimate counts the operations that the engine counts."""
    given = {"input": "none", "output": "none", "model": str(tiny_model)}
    config = load_config(None, given)
    shape, size = shape_of(RewardModel.load(str(tiny_model)).backbone), 1001
    speed = estimated_speed(config, "h100", flops_per_token(config, (size + 1) / 2))
    counted = flops(shape, np.arange(size)) / size
    assert speed.computed_tokens_per_second == pytest.approx(0.5 * 989e12 / counted)


def test_stated_rows_need_no_input_and_the_doubt_of_the_speed_is_in_hours_and_cost(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (
        "--rows",
        "100e6",
        "--tokens-per-row",
        "1500",
        "--gpu",
        "H100",
        "--price",
        "2",
        "--replicas",
        "8",
    )
    figures = planned(capsys, tiny_model, *flags)
    assert figures["to_do"]["tokens"] == [1.5e11] * 3
    hours, low, high = figures["cost"]["gpu_hours"]
    assert hours == pytest.approx(1.5e11 / figures["throughput"]["computed_tokens_per_second"] / 3600)
    assert (hours / low, high / hours) == pytest.approx((1.5, 1.5), rel=0.01)
    assert figures["cost"]["usd"] == pytest.approx([2 * hours, 2 * low, 2 * high])
    assert main(["plan", "--model", str(tiny_model), *flags]) == 0
    assert "an estimate, not measured" in capsys.readouterr().out


def test_without_a_speed_every_gpu_is_estimated_and_said_to_be(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--model", str(tiny_model), "--rows", "1e6", "--tokens-per-row", "1500")
    assert main(["plan", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("estimated, not measured")] == list(GPUS)
    assert main(["plan", *flags, "--dtype", "fp8"]) == 0
    assert "a100" not in capsys.readouterr().out  # it has no float8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpu", "h100", "--computed-tokens-per-second", "9"], "both set the speed"),
        (["--gpu", "tpu"], "unknown GPU; expected a100, h100"),
        (["--tokens-per-row", "9"], "tokens-per-row: give --rows"),
        (["--rows", "1.5"], "rows"),
    ],
)
def test_what_cannot_be_projected_is_refused(
    flags: list[str], message: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["plan", "--input", str(tmp_path), "--output", str(tmp_path / "o"), "--model", str(tiny_model)]
    assert main([*common, *flags]) == 2
    assert message in capsys.readouterr().err
