"""`mine` reads scores and shards from an object store and writes pairs to one."""

import json
from pathlib import Path
from typing import Any

import pytest

from armo_ray.cli.main import main
from armo_ray.curate.mine import run
from armo_ray.curate.options import MineOptions
from armo_ray.outputs.dataset import names_in
from armo_ray.storage.store import Store
from tests.support.growing_outputs import reveal, rows_in, units_of, write_shards
from tests.support.paths import SAMPLE
from tests.support.synthetic_outputs import score_synthetically

pytest_plugins = ("tests.support.s3_server",)


@pytest.mark.nightly
def test_pairs_in_an_object_store_equal_those_on_disk(s3: str, tmp_path: Path) -> None:
    Store(s3).write("in/[a]/llmbar.jsonl", SAMPLE.read_bytes())
    score_synthetically(f"{s3}/scores", f"{s3}/in")
    local = score_synthetically(tmp_path / "scores", SAMPLE)
    assert main(["mine", f"{s3}/scores", "--output", f"{s3}/pairs", "--format", "jsonl"]) == 0
    assert main(["mine", str(local), "--output", str(tmp_path / "pairs"), "--format", "jsonl"]) == 0

    def rows(store: Store) -> list[dict[str, Any]]:
        lines = store.read("data/train/part-00000.jsonl").decode().splitlines()
        return [{k: v for k, v in json.loads(line).items() if "row_id" not in k} for line in lines]

    pairs = rows(Store(f"{s3}/pairs"))
    assert pairs == rows(Store(str(tmp_path / "pairs")))
    assert Store(f"{s3}/pairs").list_names("").keys() == {"README.md", "_SUCCESS"}
    filtered = ["--output", f"{s3}/some", "--where", f"prompt_id = '{pairs[0]['prompt_id']}'"]
    assert main(["filter", f"{s3}/scores", *filtered]) == 0
    rest = ["--output", f"{s3}/rest", "--format", "jsonl", "--exclude", f"{s3}/some"]
    assert main(["mine", f"{s3}/scores", *rest]) == 0
    assert rows(Store(f"{s3}/rest")) == [p for p in pairs if p["prompt_id"] != pairs[0]["prompt_id"]]
    again = ["--output", f"{s3}/again", "--format", "jsonl", "--exclude", f"{s3}/some", f"{s3}/rest"]
    assert main(["mine", f"{s3}/scores", *again]) == 0
    assert rows(Store(f"{s3}/again")) == []


def test_a_dataset_in_an_object_store_grows(s3: str, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()][:20]
    whole = score_synthetically(tmp_path / "whole", write_shards(tmp_path / "in", lines, 3))
    layout = ["--format", "jsonl", "--layout", "llama3-ultrafeedback-armorm"]
    first, *rest = units_of(whole)
    for night in ([first], rest):
        reveal(whole, f"{s3}/scores", night)
        assert main(["mine", f"{s3}/scores", "--output", f"{s3}/grown", *layout, "--append"]) == 0
    assert main(["mine", str(whole), "--output", str(tmp_path / "one"), *layout]) == 0
    assert rows_in(f"{s3}/grown") == rows_in(tmp_path / "one") != []
    assert Store(f"{s3}/grown").list_names("_increments").keys() == {"made.json", "00001.json", "00002.json"}


def test_a_command_that_fails_leaves_nothing_in_an_object_store(s3: str, tmp_path: Path) -> None:
    Store(s3).write("in/llmbar.jsonl", SAMPLE.read_bytes())
    for name in ("a", "b"):
        score_synthetically(f"{s3}/{name}", f"{s3}/in")
    options = MineOptions.model_validate({"scores": [f"{s3}/a", f"{s3}/b"], "output": f"{s3}/pairs"})
    with pytest.raises(RuntimeError, match="scored twice"):
        run(options)
    assert names_in(Store(f"{s3}/pairs")) == []
