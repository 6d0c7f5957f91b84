"""Prepares the files of a benchmark, as its authors publish them, for `armo-ray score`."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from armo_ray.errors import ConfigError
from armo_ray.evaluate.benchmarks import BENCHMARKS, STEPWISE
from armo_ray.evaluate.first_errors import COLUMNS
from armo_ray.evaluate.items import Items
from armo_ray.evaluate.options import EvaluateOptions
from armo_ray.expressions.expressions import advice
from armo_ray.score.config import ScoreConfig, load_config
from armo_ray.storage import readers
from armo_ray.storage.filesystem import open_filesystem, read_text, uri_of
from armo_ray.storage.json_files import unique_keys
from armo_ray.storage.retries import patiently
from armo_ray.storage.shards import DAMAGE, Shard, find_shards, open_shard
from armo_ray.storage.store import Store
from armo_ray.text.conversations import candidates_of
from armo_ray.text.detect import detect
from armo_ray.text.input_columns import of_rows
from armo_ray.text.layouts import LABELLED

_SAMPLE_ROWS = 100


def scoring(
    options: EvaluateOptions, settings: Mapping[str, Any], output: str
) -> tuple[ScoreConfig, dict[str, str]]:
    """The config of a run that scores a benchmark into OUTPUT/scored and keeps the columns that its rules need.

    JSON files are first converted to OUTPUT/rows/*.jsonl. Also returns the original file of every input, as
    `to_json_lines` does.

    Args:
        settings: settings of armo-ray score, with `input`.

    Raises ConfigError if settings are wrong or the first rows do not belong to the benchmark.
    """
    settings = {**settings, "output": f"{output}/scored"}
    inputs = load_config(None, settings).input  # before anything is read or written: checks the settings
    files = to_json_lines(inputs, Store(f"{options.output}/rows"))
    with naming(files):
        return _scoring(options, {**settings, "input": list(files)}), files


@contextmanager
def naming(files: Mapping[str, str]) -> Iterator[None]:
    """In errors, replace the names of converted files (keys) with those of their originals (values)."""
    try:
        yield
    except (ConfigError, RuntimeError) as error:
        text = str(error)
        for converted, original in files.items():
            text = text.replace(converted, original)
        raise type(error)(text) from error


def _scoring(options: EvaluateOptions, settings: Mapping[str, Any]) -> ScoreConfig:
    stepwise = options.benchmark == STEPWISE
    benchmark_needs, takes = (COLUMNS, ()) if stepwise else _columns(options.benchmark)
    rows, shard = _first_rows(settings["input"])
    columns = {name: None for row in rows for name in row} | dict(shard.partitions)
    needs = options.by or benchmark_needs
    if missing := [name for name in needs if name not in columns]:
        raise ConfigError(
            f"{shard.uri}: no column {missing[0]}, which {options.benchmark} needs; {advice(missing[0], columns)}"
        )
    used = [*needs, *(name for name in takes if name in columns and not options.by)]
    keep = list(settings.get("keep") or ())
    kept = {text.partition("=")[0] for text in keep} | dict(shard.partitions).keys()
    config = load_config(None, {**settings, "keep": [*keep, *(name for name in used if name not in kept)]})
    if not stepwise:
        _check(rows, shard, config, options.benchmark, used)
    return config


def _columns(benchmark: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    known = BENCHMARKS[benchmark]
    return known.needs, known.takes


def _first_rows(inputs: Sequence[str]) -> tuple[list[dict[str, Any]], Shard]:
    """The first rows of the first shard that has any, and that shard. Raises ConfigError if there is none."""
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
    """Raise ConfigError before scoring if the benchmark's rules would refuse these rows after it."""
    found = of_rows(rows)
    ignored = [name for name in config.ignore if name in found.names]  # other shards may have the others
    layout = detect(found, config.layout, config.column, config.winner, ignored)
    if layout.kind not in LABELLED:
        raise ConfigError(
            f"{shard.uri}: its rows are {layout.kind}: only rows with chosen and rejected responses can be evaluated"
        )
    roles = [[c.role for c in candidates_of(row, layout)] for row in rows]
    if any(role not in ("chosen", "rejected") for row in roles for role in row):
        return  # unreadable rows are reported once all rows are scored
    with_partitions = [dict(shard.partitions) | dict(row) for row in rows]
    sizes = [len(row) for row in roles]
    BENCHMARKS[benchmark].labels(
        Items(
            names=("score",),
            values=np.full((sum(sizes), 1), np.nan, np.float32),
            tokens=np.full(sum(sizes), np.nan),
            item=np.repeat(np.arange(len(rows)), sizes),
            correct=np.array([role == "chosen" for row in roles for role in row], bool),
            columns={
                name: tuple(row.get(config.keep.get(name, name)) for row in with_partitions) for name in used
            },
            where=tuple(f"{shard.uri} row {i}" for i in range(len(rows))),
        )
    )


def to_json_lines(inputs: Sequence[str], store: Store) -> dict[str, str]:
    """Convert JSON files to JSON lines in the store; returns the original of every input, by the file to read instead.

    Inputs of other formats are their own originals. Raises ConfigError if a JSON file is missing or not valid.
    """
    originals: dict[str, str] = {}
    for uri in inputs:
        files = _files(uri) if uri.lower().endswith(".json") else ()
        for file in files:
            name = f"{len(originals):03d}/{'/'.join(file.split('/')[-2:])}l"  # rules may read the folder
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(file)).encode()
            if not _has(store, name, content):  # writing it again would make it another shard
                store.write(name, content)
            originals[store.path(name) if store.local else f"{store.uri}/{name}"] = file
        originals |= {} if files else {uri: uri}
    return originals


def _files(uri: str) -> list[str]:
    fs, path = open_filesystem(uri)
    paths: list[str] = patiently(f"listing {uri}", lambda: sorted(fs.glob(path)))
    if not paths:
        raise ConfigError(f"input {uri}: no file there")
    return [uri_of(fs, path) for path in paths]


def _has(store: Store, name: str, content: bytes) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return store.read(name) == content
    return False


def rows_of(file: str) -> Iterator[dict[str, Any]]:
    """The rows of a JSON array or of JSON lines. Rows of LLMBar get columns chosen, rejected, and subset, which is
    the name of their folder."""
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
        rows = json.loads(text, object_pairs_hook=unique_keys)
        return [rows] if isinstance(rows, dict) else rows
    except ValueError as error:
        try:
            return [
                json.loads(line, object_pairs_hook=unique_keys) for line in text.split("\n") if line.strip()
            ]
        except ValueError as line_error:
            raise ConfigError(f"{file}: not valid JSON: {error}; nor JSON lines: {line_error}") from error


def _llmbar(row: dict[str, Any], file: str, i: int) -> dict[str, Any]:
    if row.get("label") not in (1, 2) or "output_2" not in row or "input" not in row:
        raise ConfigError(f"{file} row {i}: expected input, output_1, output_2 and a label of 1 or 2")
    folders = [name.lower() for name in file.split("/")[-3:-1]]
    subset = "-".join(folders if folders[0] == "adversarial" else folders[-1:])
    chosen, rejected = (row[f"output_{n}"] for n in (row["label"], 3 - row["label"]))
    return {"subset": subset, "prompt": row["input"], "chosen": chosen, "rejected": rejected}
