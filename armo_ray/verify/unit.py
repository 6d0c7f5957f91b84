"""Checks the parts of a unit: their digests, rows, scores and hidden states against its commit record."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from armo_ray.outputs.hidden import numbers_of
from armo_ray.outputs.schema import HIDDEN_GATE, HIDDEN_LAST, REJECTS, footer, recomputed
from armo_ray.storage import parts
from armo_ray.storage.formats import PARQUET, kind_of
from armo_ray.storage.records import CommitRecord, PartEntry
from armo_ray.storage.store import Store

# float32 rounding of a sum of 19 products of a transformed gate: measured 1e-6 on scores of about 1
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Fault:
    """What is wrong with an output, and where."""

    message: str
    units: tuple[str, ...] = ()  # ids of the damaged units
    stray: str = ""  # path in the output of a part that no commit names
    file: str = ""  # the manifest, checkpoint, lock or _run.json, if it is damaged
    undone: bool = False  # nothing is damaged, but the run has not finished


def check_unit(store: Store, record: CommitRecord) -> list[Fault]:
    """The faults in the parts of a unit, which must hold what its record says."""
    unit, faults = record.unit, []
    tables: dict[str, list[pa.Table]] = {folder: [] for folder in CHECKS}
    for part in record.parts:
        try:
            content = store.read(part.path)
        except FileNotFoundError:
            faults.append(Fault(f"{part.path}: is missing", (unit,)))
            continue
        except OSError as error:  # a part that cannot be read may be intact
            faults.append(Fault(f"{part.path}: cannot be read: {error}"))
            continue
        try:
            table, folder = _table(content, part), part.path.split("/")[0]
            CHECKS[folder](table, record)
            tables[folder].append(table)
        except Exception as error:  # reading a damaged file may raise anything
            faults.append(Fault(f"{part.path}: {error}", (unit,)))
    return faults or _count(tables, record)


def _count(tables: Mapping[str, Sequence[pa.Table]], record: CommitRecord) -> list[Fault]:
    """The faults of a unit all of whose parts are whole: rows that were lost, or that no record counts."""
    unit, faults = record.unit, []
    candidates = [*tables[parts.SCORES], *tables[parts.HIDDEN]]
    counted = sum(table.num_rows for table in candidates)
    reasons = Counter(reason for table in tables[parts.REJECTS] for reason in table["reason"].to_pylist())
    if counted != record.scored or reasons != record.rejected:
        message = f"its parts hold {counted}, {dict(reasons)}, but its record has {record.scored}, {record.rejected}"
        faults.append(Fault(f"unit {unit}: {message}", (unit,)))
    if record.scored + sum(record.rejected.values()) != record.candidates:
        message = f"{record.candidates} candidates, not all scored or rejected"
        faults.append(Fault(f"unit {unit}: {message}", (unit,)))
    if candidates and footer(candidates[0].schema).get("hidden", {}).get("gates"):
        prompts, stored = (
            [prompt for table in some for prompt in table["prompt_id"].to_pylist()]
            for some in (candidates, tables[parts.PROMPTS])
        )
        if sorted(stored) != sorted(set(prompts)):
            message = f"{len(stored)} hidden states of prompts, which are not those of its {len(set(prompts))} prompts"
            faults.append(Fault(f"unit {unit}: {message}", (unit,)))
    return faults


def _table(content: bytes, part: PartEntry) -> pa.Table:
    if fault := parts.difference(content, part):
        raise ValueError(fault)
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    table = file.read(use_threads=False)
    if table.num_rows != part.rows:
        raise ValueError(f"{table.num_rows} rows, its commit record has {part.rows}")
    return table


def _check_scores(table: pa.Table, record: CommitRecord) -> None:
    _check_hidden(table, record)
    if not np.allclose(recomputed(table), table["score"].to_numpy(), rtol=_TOLERANCE, atol=_TOLERANCE):
        raise ValueError("scores are not the sum of rewards times coefficients")


def _check_hidden(table: pa.Table, record: CommitRecord) -> None:
    _check_rows(table, record)
    if len(table["row_id"].unique()) != table.num_rows:
        raise ValueError("its row ids are not unique")
    _check_states(table, HIDDEN_LAST)


def _check_prompts(table: pa.Table, _: CommitRecord) -> None:
    _check_states(table, HIDDEN_GATE)


def _check_states(table: pa.Table, column: str) -> None:
    """Raises ValueError if a hidden state is not finite; a part may have none."""
    if column in table.column_names:
        states = numbers_of(table[column], footer(table.schema)["hidden"])
        if not np.isfinite(states).all():
            raise ValueError(f"{column} holds NaN or infinity")


def _check_rejects(table: pa.Table, record: CommitRecord) -> None:
    if not table.schema.equals(REJECTS):
        raise ValueError(f"its schema is not that of rejects: {table.schema}")
    _check_rows(table, record)


def _check_rows(table: pa.Table, record: CommitRecord) -> None:
    """Raises ValueError if rows do not belong to the rows of the unit."""
    if table["source"].unique().to_pylist() != [record.source] * bool(table.num_rows):
        raise ValueError(f"some rows do not belong to {record.source}")
    if (least := pc.min(table["source_row"]).as_py()) is not None and least < record.first_row:
        raise ValueError(f"row {least} belongs to an earlier unit")
    beyond = record.first_row + max(record.num_rows, 1)
    most = pc.max(table["source_row"]).as_py()
    if kind_of(record.source) == PARQUET and most is not None and most >= beyond:
        raise ValueError(f"row {most} belongs to a later unit")


# by folder of an output
CHECKS = {
    parts.SCORES: _check_scores,
    parts.HIDDEN: _check_hidden,
    parts.PROMPTS: _check_prompts,
    parts.REJECTS: _check_rejects,
}
