"""The files of a benchmark, as its authors publish them, for `armo-ray score` to read."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from armo_ray.curation.options import EvaluateOptions
from armo_ray.errors import ConfigError
from armo_ray.evaluation.benchmarks import BENCHMARKS
from armo_ray.storage import readers
from armo_ray.storage.filesystem import open_filesystem, read_text, uri_of
from armo_ray.storage.retries import patiently
from armo_ray.storage.shards import DAMAGE, find_shards
from armo_ray.storage.store import Store

_SAMPLE_ROWS = 100


def scoring(options: EvaluateOptions, given: Mapping[str, Any], output: str) -> dict[str, Any]:
    """Settings of the run that scores a benchmark into OUTPUT/scored.

    JSON arrays become OUTPUT/rows/*.jsonl first. The columns that make the table are kept.

    Args:
        given: settings of armo-ray score, input among them.

    Raises ConfigError where a file is not of the benchmark.
    """
    given = {**given, "output": f"{output}/scored"}
    if not given.get("input"):
        return given  # and is refused as such
    inputs = lined(given["input"], Store(f"{output}/rows"))
    benchmark = BENCHMARKS[options.benchmark]
    have, where = _columns(inputs)
    needs = options.by or benchmark.needs
    if missing := [name for name in needs if name not in have]:
        raise ConfigError(
            f"{where}: no column {missing[0]}, which {options.benchmark} needs; it has {', '.join(sorted(have))}"
        )
    keep = list(given.get("keep") or ())
    named = {text.partition("=")[0] for text in keep}
    taken = [name for name in benchmark.takes if name in have and not options.by]
    keep += [name for name in (*needs, *taken) if name not in named]
    return {**given, "input": inputs, "keep": keep}


def _columns(inputs: Sequence[str]) -> tuple[set[str], str]:
    """The columns that the first shard with rows has, and its URI."""
    shards = find_shards(inputs)
    for shard in shards:
        try:
            names, _, _ = readers.sample(shard, _SAMPLE_ROWS)
        except DAMAGE as error:
            raise ConfigError(f"{shard.uri}: cannot be read: {error}") from error
        if names:
            return set(names), shard.uri
    raise ConfigError(f"{shards[0].uri}: no rows")


def lined(inputs: Sequence[str], store: Store) -> list[str]:
    """The inputs, with rows in the store instead of every JSON array."""
    found: list[str] = []
    for uri in inputs:
        files = _files(uri) if uri.endswith(".json") else ()
        for file in files:
            name = f"{len(found):03d}/{'/'.join(file.split('/')[-2:])}l"  # folder and file tell what it is
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(file)).encode()
            if not _holds(store, name, content):  # a shard that is written again is another one
                store.write(name, content)
            found.append(store.path(name) if store.local else f"{store.uri}/{name}")
        found += () if files else (uri,)
    return found


def _files(uri: str) -> list[str]:
    fs, path = open_filesystem(uri)
    found: list[str] = patiently(f"listing {uri}", lambda: sorted(fs.glob(path)))
    if not found:
        raise ConfigError(f"input {uri}: no file there")
    return [uri_of(fs, file) for file in found]


def _holds(store: Store, name: str, content: bytes) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return store.read(name) == content
    return False


def rows_of(file: str) -> Iterator[dict[str, Any]]:
    """The rows of a JSON array; those of LLMBar with their answers by label and the folder's name as subset."""
    try:
        rows = json.loads(read_text(file))
    except ValueError as error:
        raise ConfigError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{file}: expected a JSON array of objects")
    for i, row in enumerate(rows):
        yield _llmbar(row, file, i) if "output_1" in row else row


def _llmbar(row: dict[str, Any], file: str, i: int) -> dict[str, Any]:
    if row.get("label") not in (1, 2) or "output_2" not in row or "input" not in row:
        raise ConfigError(f"{file} row {i}: expected input, output_1, output_2 and a label of 1 or 2")
    folders = [name.lower() for name in file.split("/")[-3:-1]]
    subset = "-".join(folders if folders[0] == "adversarial" else folders[-1:])
    chosen, rejected = (row[f"output_{n}"] for n in (row["label"], 3 - row["label"]))
    return {"subset": subset, "prompt": row["input"], "chosen": chosen, "rejected": rejected}
