"""The files of a benchmark, as its authors publish them, for `armo-ray score` to read."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from armo_ray.errors import ConfigError
from armo_ray.evaluate.benchmarks import BENCHMARKS
from armo_ray.evaluate.items import Items
from armo_ray.evaluate.options import EvaluateOptions
from armo_ray.score.config import ScoreConfig, load_config
from armo_ray.storage import readers
from armo_ray.storage.filesystem import open_filesystem, read_text, uri_of
from armo_ray.storage.retries import patiently
from armo_ray.storage.shards import DAMAGE, Shard, find_shards, open_shard
from armo_ray.storage.store import Store
from armo_ray.text.conversations import candidates_of
from armo_ray.text.detect import detect
from armo_ray.text.input_columns import of_rows
from armo_ray.text.layouts import LABELLED

_SAMPLE_ROWS = 100


def scoring(
    options: EvaluateOptions, given: Mapping[str, Any], output: str
) -> tuple[ScoreConfig, dict[str, str]]:
    """The run that scores a benchmark into OUTPUT/scored, and keeps the columns that make its table.

    JSON files become OUTPUT/rows/*.jsonl first; also returns what `lined` does of them.

    Args:
        given: settings of armo-ray score, input among them.

    Raises ConfigError where settings are wrong, or the first rows are not of the benchmark.
    """
    given = {**given, "output": f"{output}/scored"}
    load_config(None, given)  # before anything is read or written
    files = lined(given["input"], Store(f"{output}/rows"))
    with naming(files):
        return _scoring(options, {**given, "input": list(files)}), files


@contextmanager
def naming(files: Mapping[str, str]) -> Iterator[None]:
    """Errors name the files that are the values, where they would name those that are the keys."""
    try:
        yield
    except (ConfigError, RuntimeError) as error:
        text = str(error)
        for made, file in files.items():
            text = text.replace(made, file)
        raise type(error)(text) from error


def _scoring(options: EvaluateOptions, given: Mapping[str, Any]) -> ScoreConfig:
    benchmark = BENCHMARKS[options.benchmark]
    rows, shard = _first_rows(given["input"])
    have = {name: None for row in rows for name in row} | dict(shard.partitions)
    needs = options.by or benchmark.needs
    if missing := [name for name in needs if name not in have]:
        raise ConfigError(
            f"{shard.uri}: no column {missing[0]}, which {options.benchmark} needs; it has {', '.join(have)}"
        )
    used = [*needs, *(name for name in benchmark.takes if name in have and not options.by)]
    keep = list(given.get("keep") or ())
    named = {text.partition("=")[0] for text in keep} | dict(shard.partitions).keys()
    config = load_config(None, {**given, "keep": [*keep, *(name for name in used if name not in named)]})
    _check(rows, shard, config, options.benchmark, used)
    return config


def _first_rows(inputs: Sequence[str]) -> tuple[list[dict[str, Any]], Shard]:
    """Rows of the first shard that has any."""
    shards = find_shards(inputs)
    for shard in shards:
        try:
            if rows := _head(shard):
                return rows, shard
        except DAMAGE as error:
            raise ConfigError(f"{shard.uri}: cannot be read: {error}") from error
    raise ConfigError(f"{shards[0].uri}: no rows")


def _head(shard: Shard) -> list[dict[str, Any]]:
    if not shard.is_parquet:
        return readers.sample(shard, _SAMPLE_ROWS)[2]
    with open_shard(shard) as stream:
        batch = next(pq.ParquetFile(stream).iter_batches(_SAMPLE_ROWS), None)
        rows: list[dict[str, Any]] = [] if batch is None else batch.to_pylist()
        return rows


def _check(
    rows: Sequence[Mapping[str, Any]], shard: Shard, config: ScoreConfig, benchmark: str, used: Sequence[str]
) -> None:
    """Refuse files of another benchmark before they are scored: as its rules would afterwards."""
    layout = detect(of_rows(rows), config.layout, config.column, config.winner, config.ignore)
    if layout.kind not in LABELLED:
        raise ConfigError(
            f"{shard.uri}: its rows are {layout.kind}: only rows with chosen and rejected answers can be evaluated"
        )
    roles = [[c.role for c in candidates_of(row, layout)] for row in rows]
    if any(role not in ("chosen", "rejected") for row in roles for role in row):
        return  # rows that cannot be read: told with the others once all are
    full = [dict(shard.partitions) | dict(row) for row in rows]
    sizes = [len(row) for row in roles]
    BENCHMARKS[benchmark].labels(
        Items(
            names=("score",),
            values=np.full((sum(sizes), 1), np.nan, np.float32),
            tokens=np.full(sum(sizes), np.nan),
            item=np.repeat(np.arange(len(rows)), sizes),
            correct=np.array([role == "chosen" for row in roles for role in row], bool),
            columns={name: tuple(row.get(config.keep.get(name, name)) for row in full) for name in used},
            where=tuple(f"{shard.uri} row {i}" for i in range(len(rows))),
        )
    )


def lined(inputs: Sequence[str], store: Store) -> dict[str, str]:
    """The inputs, with rows in the store instead of every JSON file, each with what it was made of."""
    found: dict[str, str] = {}
    for uri in inputs:
        files = _files(uri) if uri.lower().endswith(".json") else ()
        for file in files:
            name = f"{len(found):03d}/{'/'.join(file.split('/')[-2:])}l"  # folder and file tell what it is
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(file)).encode()
            if not _holds(store, name, content):  # a shard that is written again is another one
                store.write(name, content)
            found[store.path(name) if store.local else f"{store.uri}/{name}"] = file
        found |= {} if files else {uri: uri}
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
    """The rows of a JSON array, or of JSON lines; those of LLMBar with their answers by label and the folder's name
    as subset."""
    rows = _parsed(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{file}: expected a JSON array of objects, or JSON lines")
    if not rows:
        raise ConfigError(f"{file}: no rows")
    for i, row in enumerate(rows):
        yield _llmbar(row, file, i) if "output_1" in row else row


def _parsed(file: str) -> Any:
    text = read_text(file)
    try:
        rows = json.loads(text)
        return [rows] if isinstance(rows, dict) else rows
    except ValueError as error:
        try:
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        except ValueError:
            raise ConfigError(f"{file}: not valid JSON: {error}") from error


def _llmbar(row: dict[str, Any], file: str, i: int) -> dict[str, Any]:
    if row.get("label") not in (1, 2) or "output_2" not in row or "input" not in row:
        raise ConfigError(f"{file} row {i}: expected input, output_1, output_2 and a label of 1 or 2")
    folders = [name.lower() for name in file.split("/")[-3:-1]]
    subset = "-".join(folders if folders[0] == "adversarial" else folders[-1:])
    chosen, rejected = (row[f"output_{n}"] for n in (row["label"], 3 - row["label"]))
    return {"subset": subset, "prompt": row["input"], "chosen": chosen, "rejected": rejected}
