"""filter --append and reweigh --append: an output grows by the units that it lacks, and equals one run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from armo_ray.cli.main import main
from armo_ray.curate import derived_output
from armo_ray.storage import commits
from armo_ray.verify.output import verify_output
from tests.support.growing_outputs import hide, reveal, units_of, write_shards
from tests.support.local import rows_of, score_locally
from tests.support.paths import SAMPLE
from tests.support.synthetic_outputs import score_synthetically

COMMANDS = {
    "filter": ["filter", "--where", "score > 0", "--text"],
    "reweigh": ["reweigh", "--mask", "code_style"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four units with text."""
    rows = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()][:20]
    folder = tmp_path_factory.mktemp("whole")
    return score_synthetically(folder / "out", write_shards(folder / "in", rows, 4), keep_text=True)


def run(command: list[str], scores: Path, output: Path, *more: str) -> int:
    name, *options = command
    return main([name, str(scores), "--output", str(output), *options, *more])


def state(output: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in output.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_an_output_that_grows_is_that_of_one_run(command: list[str], whole: Path, tmp_path: Path) -> None:
    units, out = units_of(whole), tmp_path / "out"
    for number in (1, 3, 4):
        reveal(whole, tmp_path / "scores", units[:number])
        before = state(out / "scores")
        assert run(command, tmp_path / "scores", out, "--append") == 0
        assert before.items() <= state(out / "scores").items()  # what was there is not written again
    assert run(command, whole, tmp_path / "one") == 0
    assert rows_of(out) == rows_of(tmp_path / "one") != []
    assert verify_output(str(out))[1] == []
    now = state(out)
    assert run(command, tmp_path / "scores", out, "--append") == 0
    assert state(out) == now


def test_a_unit_of_rejects_alone_is_added_and_a_wrong_source_changes_nothing(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text('{"prompt": "a", "responses": ["b", "c"]}\n')
    (tmp_path / "in/b.jsonl").write_text('{"prompt": "a", "responses": [""]}\n')
    scored = tmp_path / "scored"
    score_locally(tiny_model, tmp_path / "in", scored)
    out, scores = tmp_path / "out", tmp_path / "scores"
    for number in (1, 2):
        reveal(scored, scores, units_of(scored)[:number])
        assert run(COMMANDS["reweigh"], scores, out, "--append") == 0
    assert [row["reason"] for row in rows_of(out, "rejects")] == ["empty_response"]
    assert verify_output(str(out))[1] == []
    before = state(out)
    score_locally(tiny_model, SAMPLE, tmp_path / "other", keep_text=True)
    command = [
        "reweigh",
        str(scores),
        str(tmp_path / "other"),
        "--output",
        str(out),
        *COMMANDS["reweigh"][1:],
        "--append",
    ]
    assert main(command) == 2
    assert "scored with different settings" in capsys.readouterr().err
    assert state(out) == before


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_that_was_killed_goes_on(
    command: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units, out, commit = units_of(whole), tmp_path / "out", commits.commit
    reveal(whole, tmp_path / "scores", units[:2])
    assert run(command, tmp_path / "scores", out, "--append") == 0
    reveal(whole, tmp_path / "scores", units[2:])

    def killed(after: int) -> Callable[..., Any]:
        left = iter([True] * after)

        def of_unit(*arguments: Any) -> Any:
            if not next(left, False):
                raise KeyboardInterrupt
            return commit(*arguments)

        return of_unit

    for after in (0, 1):
        with monkeypatch.context() as patch:
            patch.setattr(commits, "commit", killed(after))
            assert run(command, tmp_path / "scores", out, "--append", "--threads", "1") == 1
    with monkeypatch.context() as patch:
        patch.setattr(derived_output, "finish", killed(0))
        assert run(command, tmp_path / "scores", out, "--append") == 1
    assert run(command, tmp_path / "scores", out, "--append") == 0
    assert run(command, whole, tmp_path / "one") == 0
    assert rows_of(out) == rows_of(tmp_path / "one")
    assert verify_output(str(out))[1] == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["filter", "--where", "score >= q0.5", "--append"], "quantiles and --top-k depend on all rows"),
        (["filter", "--top-k", "1", "--append"], "quantiles and --top-k depend on all rows"),
        (["filter", "--where", "score > 1", "--append"], "--where was"),
        (["filter", "--where", "score > 0", "--append", "--format", "jsonl"], "only Parquet can grow"),
        (["reweigh", "--mask", "code_style", "--append"], "was made by armo-ray filter"),
        (["reweigh", "--ensemble", "mean", "--append"], "over all rows"),
    ],
)
def test_what_would_not_equal_one_run_is_refused(
    command: list[str], message: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["filter", "--where", "score > 0"], whole, tmp_path / "out", "--append") == 0
    before = state(tmp_path / "out")
    capsys.readouterr()
    assert run(command, whole, tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert state(tmp_path / "out") == before


def test_scores_that_are_gone_are_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    units = units_of(whole)
    reveal(whole, tmp_path / "scores", units)
    assert run(COMMANDS["reweigh"], tmp_path / "scores", tmp_path / "out", "--append") == 0
    hide(tmp_path / "scores", units[0])
    capsys.readouterr()
    assert run(COMMANDS["reweigh"], tmp_path / "scores", tmp_path / "out", "--append") == 2
    assert "has rows from 1 units that" in capsys.readouterr().err


def test_scores_made_anew_are_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for where in ("score > 0", "score > 0.1"):
        shutil.rmtree(tmp_path / "kept", ignore_errors=True)
        assert run(["filter", "--where", where], whole, tmp_path / "kept") == 0
        status = run(COMMANDS["reweigh"], tmp_path / "kept", tmp_path / "out", "--append")
        assert status == (0 if where == "score > 0" else 2)
    assert "has rows from scores that were made anew since" in capsys.readouterr().err
    assert run(COMMANDS["reweigh"], tmp_path / "kept", tmp_path / "other", "--append") == 0
