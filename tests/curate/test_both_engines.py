"""Both engines write the same rows in the same order."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from armo_ray.cli.main import main
from tests.support.synthetic_outputs import score_synthetically

COMMANDS = {
    "filter": ["--where", "score >= q0.3", "--per", "subset", "--top-k", "1", "--text"],
    "reweigh": ["--mask", "helpsteer_verbosity", "--length-penalty", "0.0001"],
    "label": ["--scale", "standardized", "--temperature", "0.1", "--test-fraction", "0.2", "--no-text"],
}


def parts(output: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        str(path.relative_to(output)): pq.read_table(path, partitioning=None).to_pylist()
        for path in sorted(output.rglob("part-*.parquet"))
    }


@pytest.mark.nightly
@pytest.mark.parametrize("command", COMMANDS)
def test_ray_writes_the_rows_that_duckdb_writes(
    command: str, local_ray: str, scored_pairs: Path, tmp_path: Path
) -> None:
    for engine in ("duckdb", "ray"):
        output = ["--output", str(tmp_path / engine), "--engine", engine]
        assert main([command, str(scored_pairs), *COMMANDS[command], *output]) == 0
    assert parts(tmp_path / "duckdb") == parts(tmp_path / "ray") != {}


def test_both_engines_select_the_same_pairs(local_ray: str, rollouts: Path, tmp_path: Path) -> None:
    scores = score_synthetically(tmp_path / "scores", rollouts)
    options = ["--strategy", "all-above-margin", "--near-duplicates", "0.9"]
    options += ["--test-fraction", "0.3", "--length-control", "residual"]
    some = ["--output", str(tmp_path / "some"), "--where", "prompt_id < '4'"]
    assert main(["filter", str(scores), *some]) == 0
    options += ["--exclude", str(tmp_path / "some")]
    for engine in ("duckdb", "ray"):
        output = ["--output", str(tmp_path / engine), "--engine", engine]
        assert main(["mine", str(scores), *options, *output]) == 0
    assert parts(tmp_path / "duckdb") == parts(tmp_path / "ray")
    assert len(parts(tmp_path / "ray")) == 2
    assert all(row["prompt_id"] >= "4" for rows in parts(tmp_path / "ray").values() for row in rows)
    assert not (tmp_path / "ray" / "_work").exists()
