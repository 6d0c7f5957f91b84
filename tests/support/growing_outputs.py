"""Outputs of scores that grow night by night, and the rows of datasets that are made of them."""

import io
import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from armo_ray.storage import commits
from armo_ray.storage.store import Store


def write_shards(folder: Path, rows: list[dict[str, Any]], shards: int, seed: int = 0) -> Path:
    """Rollouts in shards of one unit each. Most prompts recur in several, each time with other responses."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    responses = [row[side] for row in rows for side in ("chosen", "rejected")]
    for number in range(shards):
        lines = [
            {"prompt": row["prompt"], "responses": rng.sample(responses, 1 + rng.randrange(3))}
            for row in rng.sample(rows, 2 + rng.randrange(8))
        ]
        (folder / f"{number:02}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def units_of(output: Path) -> list[str]:
    """The units of an output, in the order of their shards."""
    return [record.unit for record in commits.read_commits(Store(str(output)))]


def reveal(whole: Path, output: Path | str, units: Iterable[str]) -> None:
    """Let an output hold these units of another, too."""
    source, store = Store(str(whole)), Store(str(output))
    store.write(commits.RUN, source.read(commits.RUN))
    for unit in units:
        for part in commits.read_record(source, unit).parts:
            store.write(part.path, source.read(part.path))
        name = f"{commits.COMMITS}/{unit}.json"
        store.write(name, source.read(name))
    commits.finish(store)


def hide(output: Path, unit: str) -> None:
    """Let an output no longer hold a unit."""
    store = Store(str(output))
    for part in commits.read_record(store, unit).parts:
        store.delete(part.path)
    store.delete(f"{commits.COMMITS}/{unit}.json")
    commits.finish(store)


def rows_in(dataset: Path | str) -> list[str]:
    """The rows of the parts in a manifest, each with its split, in the order of text.

    No other part is there but those that published nights list.
    """
    store = Store(str(dataset))
    manifest = store.read_json(commits.SUCCESS) or {}
    rows: list[str] = []
    for part in manifest["parts"]:
        content, split = store.read(part["path"]), part["path"].split("/")[1]
        if part["path"].endswith(".jsonl"):
            found = [json.loads(line) for line in content.splitlines()]
        else:
            found = pq.read_table(io.BytesIO(content)).to_pylist()
        assert len(found) == part["rows"]
        rows += [f"{split} {json.dumps(row, sort_keys=True)}" for row in found]
    there = {path.removeprefix(f"{store.root}/") for path in store.find("data")}
    listed = {part["path"] for part in manifest["parts"]}
    assert listed <= there
    assert listed == there or any("/held-" in path for path in store.find("_increments"))
    return sorted(rows)


def copied(folder: Path, copy: Path) -> Path:
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(folder, copy))
