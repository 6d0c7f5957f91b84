"""Text that is too large for one task is written in pieces, and changes no row."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.cli.main import main
from armo_ray.curate import candidate_text, candidates, job, scratch_files
from armo_ray.curate.candidate_text import with_text
from armo_ray.outputs.schema import MESSAGES
from tests.support.synthetic_outputs import score_synthetically

COMMANDS = {
    "pairs": ["mine", "--strategy", "all-above-margin", "--test-fraction", "0.3", "--keep", "source_row"],
    "conversations": ["mine", "--layout", "llama3-ultrafeedback-armorm"],
    "candidates": ["label", "--temperature", "1", "--test-fraction", "0.3", "--keep", "num_prompt_tokens"],
    "without text": ["label", "--temperature", "1", "--no-text"],
    "pairs with labels": ["label", "--temperature", "1", "--shape", "pairs"],
    "sft": ["label", "--shape", "sft", "--keep", "num_prompt_tokens"],
}


@pytest.fixture(scope="module", params=["stored", "in the shards"])
def scores(request: pytest.FixtureRequest, rollouts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pieces") / "scores"
    return score_synthetically(output, rollouts, keep_text=request.param == "stored")


def rows_in(output: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        split.name: [row for part in sorted(split.iterdir()) for row in pq.read_table(part).to_pylist()]
        for split in (output / "data").iterdir()
    }


def counts_of(output: Path) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads((output / "_SUCCESS").read_text())["counts"]
    return counts


@pytest.mark.parametrize("command", COMMANDS)
def test_pieces_hold_the_rows_of_one_task(
    command: str, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, *options = COMMANDS[command]
    assert main([name, str(scores), *options, "--output", str(tmp_path / "whole")]) == 0
    monkeypatch.setattr(job, "_PIECE_BYTES", 8_000)
    monkeypatch.setattr(scratch_files, "_FILE_BYTES", 4_000)
    for module in (candidates, candidate_text):
        monkeypatch.setattr(module, "READ_ROWS", 7)
    small = [*options, "--task-rows", "150", "--output", str(tmp_path / "pieces")]
    assert main([name, str(scores), *small]) == 0
    assert rows_in(tmp_path / "pieces") == rows_in(tmp_path / "whole") != {}
    assert counts_of(tmp_path / "pieces") == counts_of(tmp_path / "whole")
    many = len(list((tmp_path / "pieces" / "data" / "train").iterdir()))
    assert many > 3 or "--no-text" in options


def test_text_may_be_larger_than_memory(tmp_path: Path) -> None:
    """48 MB of text in 300 prompts, whose pairs have 300 MB."""
    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "long.jsonl").open("w") as shard:
        for number in range(300):
            responses = [f"{number} {k} {'word ' * 8_000}" for k in range(4)]
            shard.write(json.dumps({"prompt": f"Number {number}?", "responses": responses}) + "\n")
    scores = score_synthetically(tmp_path / "scores", tmp_path / "in", keep_text=True)
    for name, *options in (
        ["label", "--temperature", "1"],
        ["label", "--temperature", "1", "--shape", "pairs"],
        ["mine", "--strategy", "all-above-margin"],
        ["filter", "--where", "score >= q0.2"],
    ):
        output = tmp_path / "-".join([name, *options[-1:]])
        assert main([name, str(scores), *options, "--memory", "64MB", "--output", str(output)]) == 0


@pytest.mark.nightly  # takes 3 GB
def test_rows_may_have_more_text_than_an_array_holds() -> None:
    texts = [[{"role": "assistant", "content": str(number) * (1 << 20)}] for number in range(3)]
    places = [row % 3 for row in range(2_100)]
    rows = with_text(
        pa.table({"place": places}),
        pa.table({"response": pa.array(texts, MESSAGES)}),
        {"response": ("response", "place")},
    )
    assert (rows.num_rows, rows.column_names) == (2_100, ["response"])
    for row in (0, 1, 1_049, 1_050, 2_099):
        assert rows["response"][row].as_py() == texts[places[row]]
