"""Outputs made from outputs: the same units with some of their rows, or with other scores.

What is written is again a whole output of armo-ray score, which every other command reads; as JSON lines it is
one for people and trainers only.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from armo_ray.curate.tasks import engine
from armo_ray.errors import ConfigError
from armo_ray.outputs.cards import CARD, front_matter
from armo_ray.outputs.dataset import encode
from armo_ray.outputs.options import DatasetOptions
from armo_ray.outputs.schema import METADATA_KEY, footer, recomputed
from armo_ray.outputs.scores import Scores
from armo_ray.storage import commits
from armo_ray.storage.json_files import fingerprint_of, to_json
from armo_ray.storage.parts import REJECTS, SCORES, hive_values, put, read_content, read_part, write_table
from armo_ray.storage.records import CommitRecord, PartEntry, RunFile
from armo_ray.storage.store import Store
from armo_ray.version import __version__

_TASK_ROWS = 1 << 17


@dataclass(frozen=True)
class Change:
    """What becomes of the rows of an output."""

    kept: Mapping[str, bytes] | None = None  # by part, the rows to keep as packed bits; None keeps all
    made_by: Mapping[str, Any] = field(default_factory=dict)  # replaces metadata; scores are made anew by it
    fingerprint: str = ""  # of the new output, as `begin` returned it
    format: str = "parquet"


@dataclass(frozen=True)
class Task:
    """Some units of one output."""

    source: str
    output: str
    records: tuple[CommitRecord, ...]
    change: Change


def rewrite(scores: Scores, store: Store, options: DatasetOptions, change: Change) -> None:
    """Write the units of all scores with a change, and their commit records."""
    tasks: list[Task] = []
    units: set[str] = set()
    for output, run in zip(scores.outputs, scores.runs, strict=True):
        for records in _task_records(Store(output), run):
            if twice := units & {record.unit for record in records}:
                raise ConfigError(
                    f"{output}: unit {min(twice)} is in another of the outputs too: leave one out"
                )
            units |= {record.unit for record in records}
            kept = change.kept
            if kept is not None:
                paths = [f"{output}/{part.path}" for record in records for part in record.parts]
                kept = {path: kept[path] for path in paths if path in kept}
            tasks.append(Task(output, store.uri, records, replace(change, kept=kept)))
    if options.engine == "duckdb":  # a task holds one part at a time
        with ThreadPoolExecutor(options.threads or os.cpu_count()) as pool:
            list(pool.map(_rewrite, tasks))
        return
    with engine(options) as run_tasks:
        run_tasks(_rewrite, tasks)


def _task_records(store: Store, run: RunFile) -> Iterator[tuple[CommitRecord, ...]]:
    """The commit records of an output, as many at a time as a task rewrites."""
    records: list[CommitRecord] = []
    rows = 0
    for record in commits.read_commits(store, run=run):
        if records and rows + record.scored > _TASK_ROWS:
            yield tuple(records)
            records, rows = [], 0
        records.append(record)
        rows += record.scored
    if records:
        yield tuple(records)


def _rewrite(task: Task) -> None:
    source, store = Store(task.source), Store(task.output)
    for record in task.records:
        written = []
        for part in record.parts:
            if part.is_in(SCORES):
                table = read_part(source, part)
                table = _changed(table, task.change, f"{source.uri}/{part.path}")
                written += [_write(store, part.path, table, task.change.format)] if table.num_rows else []
            elif task.change.kept is None:
                written.append(copy_part(source, store, part))
        commits.commit(store, record_of(record, written, task.change.fingerprint))


def _write(store: Store, path: str, table: pa.Table, kind: str) -> PartEntry:
    if kind == "parquet":
        return write_table(store, path, table)
    for name, value in hive_values(path):  # columns that are directories are columns of the lines
        table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
    return put(store, f"{path.removesuffix('parquet')}{kind}", encode(table, kind), table.num_rows)


def copy_part(source: Store, store: Store, part: PartEntry) -> PartEntry:
    """Write a part as it is in another output."""
    return put(store, part.path, read_content(source, part), part.rows)


def _changed(table: pa.Table, change: Change, path: str) -> pa.Table:
    if change.kept is not None:
        bits = np.unpackbits(np.frombuffer(change.kept[path], np.uint8), count=table.num_rows)
        table = table.filter(pa.array(bits.astype(bool)))
    return rescored(table, change.made_by) if change.made_by else table


def rescored(table: pa.Table, made_by: Mapping[str, Any]) -> pa.Table:
    """The rows with metadata replaced by what is in `made_by`, and the scores that they make then."""
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
    """Write `_run.json`: the run that scored the origin, the command that makes the output, and its new identity.

    Returns the output's fingerprint. Raises ConfigError if the outputs that it is made of were scored in different
    ways.
    """
    first, *others = scores.runs
    for output, other in zip(scores.outputs[1:], others, strict=True):
        differs = sorted(
            name
            for name in first.identity.keys() | other.identity.keys()
            if name != "unit_rows" and first.identity.get(name) != other.identity.get(name)
        )
        if differs or first.carried != other.carried:
            what = ", ".join(differs) or "the types of kept columns"
            raise ConfigError(
                f"{output} was scored otherwise than {scores.outputs[0]} ({what}): take one at a time"
            )
    details = {
        name: value for name, value in first.to_dict().items() if name not in ("identity", "created_at")
    }
    whole = {**first.identity, **identity}
    if made["options"]["format"] == "parquet":
        commits.open_run(store, whole, {**details, "made_by": made})
    return fingerprint_of(whole)


def finish(store: Store, options: DatasetOptions, title: str, about: Sequence[str]) -> None:
    """Write the manifest, from which on the output is whole, and a card for people."""
    scores = [part for record in commits.finish(store) for part in record.parts_in(SCORES)]
    front = front_matter(
        {"default": {"train": f"{SCORES}/**/*.{options.format}"}},
        ["armo-ray"],
        state=(store.uri, commits.now()),
        parts={"default": {"train": scores}},
    )
    given = to_json(options.model_dump(mode="json", exclude_defaults=True)).decode()
    lines = [*front, f"# {title}", "", *about, "", "```json", given.strip(), "```"]
    lines += [f"armo-ray {__version__}, {commits.now()}", ""]
    store.write(CARD, "\n".join(lines).encode())
