"""Outputs derived from outputs of `armo-ray score`: the same units with fewer rows or with other scores.

As Parquet the result is itself a complete output of `armo-ray score` that every other command reads; as JSON lines
it is for people and trainers only.
"""

import json
import os
from collections.abc import Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from armo_ray.curate.tasks import engine
from armo_ray.curate.unit_text import Unit, with_text
from armo_ray.errors import ConfigError
from armo_ray.outputs.cards import CARD, Split, dataset_card
from armo_ray.outputs.dataset import encode
from armo_ray.outputs.options import DatasetOptions
from armo_ray.outputs.partitions import Partitions, units_in_partitions
from armo_ray.outputs.schema import HIDDEN_LAST, METADATA_KEY, footer, recomputed
from armo_ray.outputs.scores import Scores
from armo_ray.outputs.text import Source
from armo_ray.storage import commits
from armo_ray.storage.json_files import fingerprint_of
from armo_ray.storage.parts import REJECTS, SCORES, hive_values, put, read_content, read_part, write_table
from armo_ray.storage.records import CommitRecord, PartEntry, RunFile
from armo_ray.storage.store import Store

_TASK_ROWS = 1 << 17


@dataclass(frozen=True)
class Change:
    """How the rows of an output change."""

    kept: Mapping[str, bytes] | None = None  # by URI of a part, packed bits of the rows to keep; None: all
    made_by: Mapping[str, Any] = field(default_factory=dict)  # new metadata, with which scores are recomputed
    sources: Mapping[str, Source] = field(
        default_factory=dict
    )  # to add text from, by URI; none: none is added
    fingerprint: str = ""  # of the new output, as `begin` returned it
    format: str = "parquet"


@dataclass(frozen=True)
class Task:
    """Some units of one output."""

    source: str
    output: str
    records: tuple[CommitRecord, ...]
    change: Change


def rewrite(
    scores: Scores, store: Store, options: DatasetOptions, change: Change, done: Set[str] = frozenset()
) -> None:
    """Write all units but those that are done, changed, and their commit records.

    Raises ConfigError if two outputs share a unit.
    """
    if done:
        store.delete(commits.SUCCESS)  # until it lists the new units, too
    tasks: list[Task] = []
    units: set[str] = set()
    for output, run in zip(scores.outputs, scores.runs, strict=True):
        for records in _task_records(Store(output), run, scores.partitions, done):
            if twice := units & {record.unit for record in records}:
                raise ConfigError(
                    f"{output}: unit {min(twice)} is also in another of the outputs: leave one of them out"
                )
            units |= {record.unit for record in records}
            kept = change.kept
            if kept is not None:
                paths = [f"{output}/{part.path}" for record in records for part in record.parts]
                kept = {path: kept[path] for path in paths if path in kept}
            sources = {r.source: change.sources[r.source] for r in records if r.source in change.sources}
            tasks.append(Task(output, store.uri, records, replace(change, kept=kept, sources=sources)))
    if options.engine == "duckdb":
        # each thread holds one part in memory at a time; with text, those of a task. Half of them wait for the disk
        with ThreadPoolExecutor(2 * (options.threads or os.cpu_count() or 1)) as pool:
            list(pool.map(_rewrite, tasks))
        return
    with engine(options) as run_tasks:
        run_tasks(_rewrite, tasks)


def _task_records(
    store: Store, run: RunFile, partitions: Partitions, done: Set[str]
) -> Iterator[tuple[CommitRecord, ...]]:
    """The commit records of an output's units but those that are done, in batches of at most about _TASK_ROWS rows."""
    records: list[CommitRecord] = []
    rows = 0
    for record in units_in_partitions(commits.read_commits(store, run=run), partitions):
        if record.unit in done:
            continue
        if records and rows + record.scored > _TASK_ROWS:
            yield tuple(records)
            records, rows = [], 0
        records.append(record)
        rows += record.scored
    if records:
        yield tuple(records)


def _rewrite(task: Task) -> None:
    source, store, change = Store(task.source), Store(task.output), task.change
    units: Iterator[Unit] = ((record, _changed_parts(source, record, change)) for record in task.records)
    for record, tables in with_text(units, change.sources) if change.sources else units:
        written = [_write(store, path, table, change.format) for path, table in tables]
        if change.kept is None:
            written += [copy_part(source, store, part) for part in record.parts_in(REJECTS)]
        commits.commit(store, record_of(record, written, change.fingerprint))


def _changed_parts(source: Store, record: CommitRecord, change: Change) -> list[tuple[str, pa.Table]]:
    """The path and the changed rows of every part of scores that still has rows."""
    parts = record.parts_in(SCORES)
    tables = [
        (part.path, _changed(read_part(source, part), change, f"{source.uri}/{part.path}")) for part in parts
    ]
    return [(path, table) for path, table in tables if table.num_rows]


def _write(store: Store, path: str, table: pa.Table, kind: str) -> PartEntry:
    if kind == "parquet":
        return write_table(store, path, table)
    for name, value in hive_values(path):  # JSON lines get the hive directories as columns
        table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
    return put(store, f"{path.removesuffix('parquet')}{kind}", encode(table, kind), table.num_rows)


def copy_part(source: Store, store: Store, part: PartEntry) -> PartEntry:
    """Copy a part from one output to another, unchanged."""
    return put(store, part.path, read_content(source, part), part.rows)


def _changed(table: pa.Table, change: Change, path: str) -> pa.Table:
    if change.kept is not None:
        bits = np.unpackbits(np.frombuffer(change.kept[path], np.uint8), count=table.num_rows)
        table = table.take(pa.array(np.flatnonzero(bits)))  # a mask would take twice as long
    table = without_states(table)
    return rescored(table, change.made_by) if change.made_by else table


def without_states(table: pa.Table) -> pa.Table:
    """The rows without hidden states, which stay in the output where they were computed."""
    if HIDDEN_LAST not in table.column_names:
        return table
    content = footer(table.schema)
    del content["hidden"]
    metadata = {**table.schema.metadata, METADATA_KEY: json.dumps(content, sort_keys=True)}
    return table.drop_columns([HIDDEN_LAST]).replace_schema_metadata(metadata)


def rescored(table: pa.Table, made_by: Mapping[str, Any]) -> pa.Table:
    """The rows with `made_by` merged into their metadata, and their scores recomputed with it."""
    metadata = json.dumps({**footer(table.schema), **made_by}, sort_keys=True)
    table = table.replace_schema_metadata({**table.schema.metadata, METADATA_KEY: metadata})
    place = table.schema.get_field_index("score")
    return table.set_column(place, table.schema.field(place), pa.array(recomputed(table)))


def record_of(record: CommitRecord, parts: list[PartEntry], fingerprint: str) -> CommitRecord:
    """The record of a unit of a new output: rows that were not kept count as never read."""
    scored = sum(part.rows for part in parts if part.is_in(SCORES))
    rejected = record.rejected if any(part.is_in(REJECTS) for part in parts) else {}
    return replace(
        record,
        candidates=scored + sum(rejected.values()),
        scored=scored,
        rejected=rejected,
        parts=tuple(parts),
        run_fingerprint=fingerprint,
    )


def begin(scores: Scores, store: Store, made: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """Write the output's _run.json: that of the scoring run, with `made_by` and with `identity` updated.

    Returns the output's fingerprint. Raises ConfigError if the source outputs were scored with different settings.
    """
    first, *others = scores.runs
    for output, other in zip(scores.outputs[1:], others, strict=True):
        differs = sorted(
            name
            for name in first.identity.keys() | other.identity.keys()
            if name != "unit_rows" and first.identity.get(name) != other.identity.get(name)
        )
        if differs or first.carried != other.carried:
            difference = ", ".join(differs) or "the types of kept columns"
            raise ConfigError(
                f"{output} and {scores.outputs[0]} were scored with different settings ({difference}): "
                f"use one at a time"
            )
    details = {
        name: value for name, value in first.to_dict().items() if name not in ("identity", "created_at")
    }
    whole = {**first.identity, **identity}
    if made["options"]["format"] == "parquet":
        commits.open_run(store, whole, {**details, "made_by": made})
    return fingerprint_of(whole)


def finish(store: Store, options: DatasetOptions, title: str, about: str) -> None:
    """Write the manifest, which makes the output complete, and then the card; `about` is Markdown."""
    scores = [part for part in commits.finish(store).parts() if part.is_in(SCORES)]
    splits = {"train": Split(f"{SCORES}/**/*.{options.format}", scores)}
    store.write(CARD, dataset_card(store.uri, title, about, options, splits).encode())
