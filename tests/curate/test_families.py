"""The curation commands work on the scores of every family of models."""

from pathlib import Path

import numpy as np
import pytest

from armo_ray.cli.main import main
from armo_ray.model.families import FAMILIES
from armo_ray.tiny.families import write_family
from armo_ray.verify.output import verify_output
from tests.support.by_day import by_day
from tests.support.local import rows_as_written, score_locally
from tests.support.paths import SAMPLE

NAMED_FAMILIES = {"prm-mistral", "pairwise"}


@pytest.mark.parametrize(
    "family",
    by_day(
        ["classifier", "urm", "qrm", "prm-mistral", "pairwise", "deberta"], {"urm", "prm-mistral", "pairwise"}
    ),
)
def test_every_command_reads_the_scores_of_every_family(family: str, tmp_path: Path) -> None:
    write_family(tmp_path / "model", family)
    lines = SAMPLE.read_text("utf-8").splitlines(keepends=True)
    if FAMILIES[family].bidirectional:  # which reads 512 tokens
        lines.sort(key=len)
    (tmp_path / "in.jsonl").write_text("".join(lines[:12]), "utf-8")
    options = {"family": family} if family in NAMED_FAMILIES else {}
    score_locally(tmp_path / "model", tmp_path / "in.jsonl", tmp_path / "scores", keep=["id"], **options)
    rows = rows_as_written(tmp_path / "scores")
    assert len(rows) == 24
    reward = next(iter(rows[0]["rewards"]))
    commands = {
        "mine": ["--min-margin", f"{reward}=0"],
        "label": ["--scale", "standardized", "--no-text", "--temperature", "1"],
        "filter": ["--where", f"{reward} >= q0.5"],
        "reweigh": ["--length-penalty", "0.5", "--factor", f"{reward}=2"],
    }
    for name, arguments in commands.items():
        command = [name, str(tmp_path / "scores"), "--output", str(tmp_path / name), *arguments]
        assert main(command) == 0, name
    kept = rows_as_written(tmp_path / "filter")
    assert (
        sorted(row["rewards"][reward] for row in kept)
        == sorted(row["rewards"][reward] for row in rows)[-len(kept) :]
    )
    again = rows_as_written(tmp_path / "reweigh")
    assert np.abs([a["score"] - b["score"] for a, b in zip(again, rows, strict=True)]).max() > 1
    assert verify_output(str(tmp_path / "reweigh"))[1] == []
