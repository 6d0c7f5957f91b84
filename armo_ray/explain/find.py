"""Finds one row of an output through its commit records, so the output need not be complete."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from armo_ray.errors import ConfigError
from armo_ray.outputs.schema import footer
from armo_ray.outputs.scores import check_scored
from armo_ray.storage import commits
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.parts import REJECTS, SCORES, read_part, with_directories
from armo_ray.storage.records import CommitRecord, RunFile
from armo_ray.storage.shards import row_id
from armo_ray.storage.store import Store

Scored = list[tuple[float, str]]  # scores and row ids

PICKS = ("highest", "lowest", "random", "rejected")
_NEEDED = ("identity.layout", "identity.keep_text")
_ROW_ID = re.compile(r"([0-9a-f]{16}):(\d+)(?::(\d+))?")


@dataclass(frozen=True)
class Found:
    """One row of the source, with its score or its rejects."""

    run: RunFile
    record: CommitRecord  # of the row's unit
    row: int  # source_row
    candidate: int | None
    scores: pa.Table | None  # one row with its metadata; None if the candidate was not scored
    rejects: list[dict[str, Any]]

    @property
    def about(self) -> dict[str, Any]:
        """Metadata of the model from the footer of the scores; empty if there are none."""
        return {} if self.scores is None else footer(self.scores.schema)


def find(uri: str, selector: str) -> Found:
    """The row with the id `selector`, or the one that a word in PICKS selects.

    Reads the parts of one unit; for highest and lowest, those of all units. Raises ConfigError if there is no such
    output or row.
    """
    store = Store(uri)
    with commits.reading(store):
        run = commits.read_run(store, _NEEDED)
        check_scored(store, run)
        committed = commits.list_commits(store)
    row_id = _pick(store, run, committed, selector) if selector in PICKS else selector
    if not (match := _ROW_ID.fullmatch(row_id)):
        raise ConfigError(f"row {row_id}: expected SHARD:ROW:CANDIDATE as in row_id, or {', '.join(PICKS)}")
    shard, row, candidate = match[1], int(match[2]), None if match[3] is None else int(match[3])
    units = {unit for unit in committed if unit.startswith(shard)}
    record = _unit_of(store, run, units, shard, row)
    tables = [_only(t, row, candidate) for t in _tables(store, record, SCORES)]
    scores = next((t.slice(0, 1) for t in tables if t.num_rows), None)
    if scores is not None:
        candidate = scores["candidate"][0].as_py()
    rejects = [r for t in _tables(store, record, REJECTS) for r in _rejects(t, row, candidate)]
    if scores is None and not rejects:
        raise ConfigError(
            f"row {row_id}: not among the rows of {record.source} committed to {store.uri}: the run has not reached "
            f"it yet, or there is no such row or candidate"
        )
    return Found(run, record, row, candidate, scores, rejects)


def count_rejects(uri: str) -> Counter[str]:
    """How many rows and candidates of an output were rejected so far, by reason."""
    store = Store(uri)
    counts: Counter[str] = Counter()
    for record in commits.read_commits(store, run=commits.read_run(store, _NEEDED)):
        counts.update(record.rejected)
    return counts


def _unit_of(store: Store, run: RunFile, units: set[str], shard: str, row: int) -> CommitRecord:
    """The commit record of a row's unit: the last one that starts at or before it, because row numbers have gaps."""
    if not units:
        raise ConfigError(
            f"row {shard}:{row}: nothing is committed to {store.uri} from a shard with this hash: the run has not "
            f"reached it yet, or the row belongs to another output"
        )
    records = [r for r in commits.read_commits(store, units, run=run) if r.first_row <= row]
    if not records:
        raise ConfigError(f"row {shard}:{row}: the unit that holds it is not committed to {store.uri} yet")
    return records[-1]


def _tables(
    store: Store, record: CommitRecord, folder: str, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    for part in record.parts_in(folder):
        yield with_directories(read_part(store, part, columns), part.path, columns)


def _only(table: pa.Table, row: int, candidate: int | None) -> pa.Table:
    mask = pc.equal(table["source_row"], row)
    return table.filter(mask if candidate is None else pc.and_(mask, pc.equal(table["candidate"], candidate)))


def _rejects(table: pa.Table, row: int, candidate: int | None) -> list[dict[str, Any]]:
    """The rejects of a row or of one of its candidates, each with the raw row, which only the first one stores."""
    of_row: list[dict[str, Any]] = table.filter(pc.equal(table["source_row"], row)).to_pylist()
    raw = next((r["raw"] for r in of_row if r["raw"] is not None), None)
    selected = [r for r in of_row if candidate is None or r["candidate"] in (None, candidate)]
    return [r | {"raw": raw} for r in selected]


def _pick(store: Store, run: RunFile, committed: set[str], word: str) -> str:
    """The id of the row with the highest or lowest score, or of a random row or reject."""
    if word == "rejected":
        return _random_reject(store, run, committed)

    def choose(rows: Scored) -> tuple[float, str]:
        return random.choice(rows) if word == "random" else max(rows) if word == "highest" else min(rows)

    def of_unit(unit: str) -> Scored:
        (record,) = commits.read_commits(store, [unit], run=run)
        columns = ["score", "row_id"]
        tables = [t.to_pylist() for t in _tables(store, record, SCORES, columns)]
        rows = [(row["score"], row["row_id"]) for table in tables for row in table]
        return [choose(rows)] if rows else []

    units = sorted(committed)
    if word == "random":
        choices = next(filter(None, map(of_unit, random.sample(units, len(units)))), [])
    else:
        choices = [row for rows in in_parallel(of_unit, units) for row in rows]
    if not choices:
        raise ConfigError(f"{store.uri}: no candidate has been scored yet")
    return choose(choices)[1]


def _random_reject(store: Store, run: RunFile, committed: set[str]) -> str:
    for unit in random.sample(sorted(committed), len(committed)):
        (record,) = commits.read_commits(store, [unit], run=run)
        for table in _tables(store, record, REJECTS, ["source", "source_row", "candidate"]):
            ids = [row_id(r["source"], r["source_row"], r["candidate"]) for r in table.to_pylist()]
            if rejected := [row for row in ids if row is not None]:
                return random.choice(rejected)
    raise ConfigError(f"{store.uri}: no row has been rejected")
