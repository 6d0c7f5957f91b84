"""Outputs derived from outputs of `armo-ray score`: the same rows or some of them, with the same or other scores.

Consecutive units of a shard become one, so that parts do not get smaller with each row that is left out. As Parquet the
result is itself a complete output of `armo-ray score` that every other command reads; as JSON lines it is for people
and trainers only.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa

from armo_ray.curate.kept_rows import kept_rows
from armo_ray.curate.tasks import engine
from armo_ray.curate.unit_text import Unit, with_text
from armo_ray.errors import ConfigError
from armo_ray.outputs.cards import CARD, Split, dataset_card
from armo_ray.outputs.dataset import encode
from armo_ray.outputs.options import DatasetOptions
from armo_ray.outputs.partitions import shards_in_partitions
from armo_ray.outputs.schema import HIDDEN_LAST, METADATA_KEY, footer, recomputed
from armo_ray.outputs.scores import Scores
from armo_ray.outputs.text import Source
from armo_ray.storage import commits
from armo_ray.storage.filesystem import is_remote
from armo_ray.storage.json_files import fingerprint_of
from armo_ray.storage.parts import (
    REJECTS,
    SCORES,
    put,
    read_content,
    read_part,
    with_directories,
    write_table,
)
from armo_ray.storage.records import CommitRecord, MergedUnit, PartEntry, Totals
from armo_ray.storage.store import Store

# in a record: the checksum of the _run.json of the scores, and the date of the command if it was given one
MADE_FROM, MADE_ON = "made_from", "made_on"
_TASK_ROWS, _TASK_BYTES = 1 << 17, 32 << 20  # of the units that a task rewrites
_PART_BYTES = 32 << 20  # in memory, from which on a part gets no further unit


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
    run: str | None  # checksum of the _run.json there
    output: str
    records: tuple[CommitRecord, ...]
    change: Change
    options: DatasetOptions


class Moved(NamedTuple):
    """Where the rows of a part went."""

    source: str  # URI of the part
    part: str  # URI of the new part
    first: int  # place of the first of them in the new part


def rewrite(
    scores: Scores, store: Store, options: DatasetOptions, change: Change, done: Set[str] = frozenset()
) -> list[Moved]:
    """Write all units but those that are done, changed, and their commit records. Returns where the parts went.

    Raises ConfigError if two outputs share a unit.
    """
    if done:
        store.delete(commits.SUCCESS)  # until it lists the new units, too
    tasks: list[Task] = []
    units: set[str] = set()
    for output, run in zip(scores.outputs, scores.runs, strict=True):
        committed = commits.read_commits(Store(output), run=run)
        for records in _task_records(shards_in_partitions(committed, scores.partitions), done):
            read = {unit.unit for record in records for unit in record.ranges()}
            if twice := units & read:
                raise ConfigError(
                    f"{output}: unit {min(twice)} is also in another of the outputs: leave one of them out"
                )
            units |= read
            kept = change.kept
            if kept is not None:
                paths = [f"{output}/{part.path}" for record in records for part in record.parts]
                kept = {path: kept[path] for path in paths if path in kept}
            sources = {r.source: change.sources[r.source] for r in records if r.source in change.sources}
            of_task = replace(change, kept=kept, sources=sources)
            tasks.append(Task(output, run.checksum, store.uri, records, of_task, options))
    if options.engine == "duckdb":
        threads = options.threads or os.cpu_count() or 1
        remote = any(map(is_remote, (store.uri, *scores.outputs)))
        with ThreadPoolExecutor(2 * threads if remote else threads) as pool:  # half wait for a server
            return list(chain.from_iterable(pool.map(_rewrite, tasks)))
    with engine(options) as run_tasks:
        return list(chain.from_iterable(run_tasks(_rewrite, tasks)))


def _task_records(chosen: Iterable[CommitRecord], done: Set[str]) -> Iterator[tuple[CommitRecord, ...]]:
    """The commit records of units but those that are done, in batches of bounded size."""
    records: list[CommitRecord] = []
    rows = size = 0
    for record in chosen:
        if record.unit in done:
            continue
        of_record = sum(part.bytes for part in record.parts)
        if records and (rows + record.candidates > _TASK_ROWS or size + of_record > _TASK_BYTES):
            yield tuple(records)
            records, rows, size = [], 0, 0
        records.append(record)
        rows += record.candidates
        size += of_record
    if records:
        yield tuple(records)


def _rewrite(task: Task) -> list[Moved]:
    source, store, change = Store(task.source), Store(task.output), task.change
    units = _read(source, task)
    units = with_text(units, change.sources) if change.sources else units
    return [moved for group in _groups(units) for moved in _write_merged(source, store, group, task)]


def _groups(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    """Runs of consecutive units, each of which will be one unit. Holds the rows of one of them at a time."""
    group: list[Unit] = []
    held = 0
    for unit in units:
        if group and (held >= _PART_BYTES or not _continues(group, unit)):
            yield group
            group, held = [], 0
        group.append(unit)
        held += sum(table.nbytes for _, table in unit[1])
    if group:
        yield group


def _continues(group: Sequence[Unit], unit: Unit) -> bool:
    """Whether a unit follows others in their shard, with rows of the same columns, metadata and directories."""
    before, record = group[-1][0], unit[0]
    is_next = record.ordinal == before.ordinal + before.num_units
    if (before.source, before.identity) != (record.source, record.identity) or not is_next:
        return False
    held, own = {_folders(of) for of, _ in group} - {frozenset()}, _folders(record)
    if own and not held <= {own}:  # else --partition would no longer find the unit
        return False
    schemas = [table.schema for _, tables in group for path, table in tables if path.startswith(SCORES)][:1]
    schemas += [table.schema for path, table in unit[1] if path.startswith(SCORES)]
    return all(schema.equals(schemas[0], check_metadata=True) for schema in schemas)


def _folders(record: CommitRecord) -> frozenset[str]:
    """The directories of a unit's scores."""
    return frozenset(_folder(part.path) for part in record.parts_in(SCORES))


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _write_merged(source: Store, store: Store, group: Sequence[Unit], task: Task) -> list[Moved]:
    """Write consecutive units as one, and commit it. Returns where the rows of each of their parts went."""
    change, records = task.change, [record for record, _ in group]
    moved: list[Moved] = []
    merged: dict[str, list[pa.Table]] = {}
    for _, tables in group:
        for path, table in tables:
            new = f"{_folder(path)}/part-{records[0].unit}.parquet"
            before = merged.setdefault(new, [])
            moved.append(Moved(f"{source.uri}/{path}", f"{store.uri}/{new}", sum(t.num_rows for t in before)))
            before.append(table)
    written = []
    for path, tables in merged.items():
        table = pa.concat_tables(tables)
        is_rescored = change.made_by and path.startswith(SCORES)
        table = rescored(table, change.made_by) if is_rescored else table
        written.append(_write(store, path, table, change.format))
    extra = {MADE_FROM: task.run, MADE_ON: task.options.date}
    told = tuple((name, value) for name, value in extra.items() if value)
    commits.commit(store, replace(record_of(records, written, change.fingerprint), extra=told))
    return moved


def _read(source: Store, task: Task) -> Iterator[Unit]:
    """The units, with the rows to keep of every part of scores that has some, and the rejects if all rows stay."""
    kept = task.change.kept
    if kept is None:
        for record in task.records:
            parts = [*record.parts_in(SCORES), *record.parts_in(REJECTS)]
            yield record, [(part.path, without_states(read_part(source, part))) for part in parts]
        return
    left = [
        [part for part in record.parts_in(SCORES) if any(kept[f"{source.uri}/{part.path}"])]
        for record in task.records
    ]
    tables = kept_rows(source, list(chain.from_iterable(left)), kept, task.options)
    for record, parts in zip(task.records, left, strict=True):
        yield record, [(part.path, without_states(next(tables))) for part in parts]


def _write(store: Store, path: str, table: pa.Table, kind: str) -> PartEntry:
    if kind == "parquet":
        return write_table(store, path, table)
    content = encode(with_directories(table, path), kind)
    return put(store, f"{path.removesuffix('parquet')}{kind}", content, table.num_rows)


def copy_part(source: Store, store: Store, part: PartEntry) -> PartEntry:
    """Copy a part from one output to another, unchanged."""
    return put(store, part.path, read_content(source, part), part.rows)


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


def record_of(records: Sequence[CommitRecord], parts: Sequence[PartEntry], fingerprint: str) -> CommitRecord:
    """The record of consecutive units of another output as one unit: rows that were not kept count as never read."""
    scored = sum(part.rows for part in parts if part.is_in(SCORES))
    has_rejects = any(part.is_in(REJECTS) for part in parts)
    rejected = Totals.of(records).rejected if has_rejects else {}
    ranges = [unit for record in records for unit in record.ranges()]
    merged = tuple(MergedUnit(unit.unit, unit.first_row, unit.num_rows, unit.content) for unit in ranges)
    return replace(
        records[0],
        merged=merged if len(ranges) > 1 else (),
        content=ranges[0].content if len(ranges) == 1 else None,
        timing=None,  # it took no time of a model
        passes=None,
        extra=(),
        last=records[-1].last,
        num_rows=sum(record.num_rows for record in records),
        candidates=scored + sum(rejected.values()),
        scored=scored,
        rejected=rejected,
        num_tokens=sum(record.num_tokens for record in records),
        computed_tokens=sum(record.computed_tokens for record in records),
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
