"""Every command works on the scores of every family of models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armo_ray.cli.main import main
from armo_ray.model.families import FAMILIES
from armo_ray.tiny.families import write_family
from armo_ray.verify.output import verify_output
from tests.support.by_day import by_day
from tests.support.families import asked
from tests.support.local import rows_as_written, score_locally
from tests.support.paths import SAMPLE


def options_of(family: str, directory: Path) -> dict[str, Any]:
    """Options with which a tiny model of a family in `directory`/model scores."""
    write_family(directory / "model", family)
    options = {"family": family} if asked(family) else {}
    if FAMILIES[family].reads == "response":
        write_family(directory / "reference", family, seed=1)
        options["reference_model"] = str(directory / "reference")
    return options


@pytest.mark.parametrize("family", by_day(FAMILIES, {"urm", "prm-mistral", "pairwise"}))
def test_every_command_reads_the_scores_of_every_family(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_of(family, tmp_path)
    lines = SAMPLE.read_text("utf-8").splitlines(keepends=True)
    single = [
        line for line in lines if isinstance(json.loads(line)["prompt"], str)
    ]  # some read one question only
    (tmp_path / "in.jsonl").write_text("".join(sorted(single, key=len)[:12]), "utf-8")  # or 512 tokens only
    score_locally(tmp_path / "model", tmp_path / "in.jsonl", tmp_path / "scores", keep=["id"], **options)
    rows = rows_as_written(tmp_path / "scores")
    assert len(rows) == 24
    reward = next(iter(rows[0]["rewards"]))
    commands = {
        "mine": ["--min-margin", f"{reward}=0"],
        "label": ["--scale", "standardized", "--no-text", "--temperature", "1"],
        "filter": ["--where", f"{reward} >= q0.5"],
        "reweigh": ["--length-penalty", "0.5", "--factor", f"{reward}=2"],
        "report": [],
        "evaluate": ["--bootstrap", "100"],
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
    assert main(["compare", str(tmp_path / "scores"), str(tmp_path / "reweigh")]) == 0
    found = json.loads((tmp_path / "evaluate" / "evaluation.json").read_text())
    won = [chosen["score"] > rejected["score"] for chosen, rejected in pairs(rows)]
    assert found["sections"]["Overall"]["accuracy"] == pytest.approx(np.mean(won))
    explain_all(tmp_path / "scores", rows, capsys)


def pairs(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The chosen and the rejected response of every row."""
    by_role = {(row["source_row"], row["role"]): row for row in rows}
    return [(by_role[i, "chosen"], by_role[i, "rejected"]) for i in sorted({i for i, _ in by_role})]


def explain_all(output: Path, rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """Explain the best row, whose tokens are those of the scores."""
    capsys.readouterr()
    assert main(["explain", str(output), "highest", "--all-tokens"]) == 0
    told = capsys.readouterr().out
    best = max(rows, key=lambda row: row["score"])
    assert best["row_id"] in told
    assert "as stored" in told


@pytest.mark.nightly
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_of_every_family_is_fit_to_score_with(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_of(family, tmp_path)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = ["verify", "--model", str(tmp_path / "model"), "--device", "cpu", "--dtype", "float32", *flags]
    assert main(command) == 0, capsys.readouterr().out
