"""plan --previous and the outputs of judges."""

from pathlib import Path

import pytest

from armo_ray.cli.main import main


def test_the_speed_of_a_judge_is_not_taken_for_that_of_a_replica(
    judged: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "plan",
        "--model",
        str(tiny_model),
        "--input",
        str(judged / "in"),
        "--output",
        str(tmp_path / "o"),
    ]
    assert main([*command, "--previous", str(judged / "pairs")]) == 2
    assert "a judge behind an endpoint made it" in capsys.readouterr().err
