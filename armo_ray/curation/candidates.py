"""Scored candidates, cut into tasks by where they lie and into buckets by their prompts.

A bucket is a range of prompt ids, so all candidates of a prompt are in one bucket, whichever shards and parts
they came from, and buckets one after the other are in the order of prompt ids. A task of reading sorts its rows
by prompt; a task on a bucket then reads of every file the few row groups that hold its range.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray.curation.expressions import name_of, parse
from armo_ray.curation.options import MineOptions
from armo_ray.curation.scores import Part, Scores, database, literal, quoted, scan
from armo_ray.errors import ConfigError
from armo_ray.storage.opened import readable
from armo_ray.storage.store import Store

TASK_ROWS = 250_000  # candidates of a task, and about those of a bucket: some 300 MB of them with their text
_GROUP_ROWS = 8192  # few enough that the row groups of a bucket hold little else
_SIDES = ("chosen", "rejected")
KEY = "source, source_row, candidate"


@dataclass(frozen=True)
class Plan:
    """What every task of a mining run needs to know."""

    scores: Scores
    options: Any  # MineOptions or LabelOptions
    work: str  # where tasks leave what other tasks read
    select: str  # SQL of a candidate's columns
    groups: tuple[tuple[Part, ...], ...]  # the parts of each reading task

    @property
    def num_buckets(self) -> int:
        return -(-self.scores.rows // TASK_ROWS)


def group_parts(parts: Sequence[Part]) -> tuple[tuple[Part, ...], ...]:
    """Parts in runs of about TASK_ROWS rows."""
    groups: list[list[Part]] = [[]]
    rows = 0
    for part in parts:
        if groups[-1] and rows + part.rows > TASK_ROWS:
            groups.append([])
            rows = 0
        groups[-1].append(part)
        rows += part.rows
    return tuple(tuple(group) for group in groups)


def column_types(con: duckdb.DuckDBPyConnection, scores: Scores) -> dict[str, str]:
    """The DuckDB type of every column of the scores, by its name in an expression."""
    described = con.execute(f"DESCRIBE {scan(scores.parts[:1])}").fetchall()
    types = {name_of(name): str(kind) for name, kind, *_ in described}
    fields = [name_of(struct, name) for struct in ("rewards", "gating") for name in scores.reward_names]
    return types | dict.fromkeys(fields, "FLOAT")


def select_candidates(scores: Scores, options: MineOptions) -> str:
    """SQL of the columns of a candidate that decide over its pairs, and of those that pairs carry.

    Raises ConfigError where an option names a column that is not there, or cannot be used so.
    """
    with database(options) as con:
        types = column_types(con, scores)
    numbers = {"value": options.rank_by}
    numbers |= {f"m{i}": name for i, name in enumerate(options.min_margin) if name != "value"}
    numbers |= {f"p{i}": name for i, name in enumerate(options.pareto)}
    columns = {name: f"({parse(text, types, 'number').sql})::DOUBLE" for name, text in numbers.items()}
    for side in _SIDES:
        conditions = [c for c in options.constraint if _side(c, types) == side]
        sql = " AND ".join(parse(c, _of(side, types)).sql for c in conditions) or "true"
        columns[f"can_be_{side}"] = f"coalesce({sql}, false)".replace(f'"{side}".', "")
    for name in options.keep:
        if name not in scores.names:
            raise ConfigError(f"keep: no column {name} in the scores; they have {', '.join(scores.names)}")
    kept = [name for name in options.keep if name not in _CARRIED]
    return ", ".join([*_CARRIED, *map(quoted, kept), *(f"{sql} AS {name}" for name, sql in columns.items())])


_CARRIED = (
    "prompt_id",
    "row_id",
    *KEY.split(", "),
    "score",
    "rewards",
    "num_prompt_tokens",
    "num_response_tokens",
)


def _of(side: str, types: dict[str, str]) -> dict[str, str]:
    return {f"{side}.{name}": kind for name, kind in types.items()}


def _side(condition: str, types: dict[str, str]) -> str:
    """The side that a constraint is about. Raises ConfigError where it is about both or none."""
    found = parse(condition, _of(_SIDES[0], types) | _of(_SIDES[1], types))
    if found.quantiles:
        raise ConfigError(f"constraint {condition!r}: no quantiles here: armo-ray filter computes them")
    sides = {name.partition(".")[0] for name in found.columns}
    if len(sides) != 1:
        raise ConfigError(f"constraint {condition!r}: expected columns of chosen or of rejected, not of both")
    return sides.pop()


def read_candidates(plan: Plan, number: int) -> int:
    """Write the candidates of a group of parts, sorted by prompt; returns how many have no value."""
    with database(plan.options) as con:
        con.execute(
            f"CREATE TEMP TABLE found AS SELECT {plan.select}, {number} AS task "
            f"FROM ({scan(plan.groups[number])}) AS scores"
        )
        rows = con.sql(f"FROM found WHERE value IS NOT NULL ORDER BY prompt_id, {KEY}").to_arrow_table()
        (left,) = con.execute("SELECT count(*) FROM found WHERE value IS NULL").fetchall()[0]
    write_work(plan, f"candidates-{number:05d}", rows)
    return int(left)


def write_work(plan: Plan, name: str, rows: pa.Table) -> None:
    """Leave sorted rows for other tasks."""
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="lz4", row_group_size=_GROUP_ROWS, use_dictionary=["source"])
    Store(plan.work).write(f"{name}.parquet", sink.getvalue())


def work_files(plan: Plan, names: Iterator[str]) -> str:
    """The rows of files that tasks left, as a relation."""
    files = ", ".join(literal(readable(f"{plan.work}/{name}.parquet")) for name in names)
    return f"read_parquet([{files}])"


def in_bucket(plan: Plan, bucket: int) -> str:
    """The condition that a prompt is in a bucket."""
    low, high = (f"{place * 16**8 // plan.num_buckets:08x}" for place in (bucket, bucket + 1))
    above = f"prompt_id >= '{low}'"
    return above if bucket + 1 == plan.num_buckets else f"{above} AND prompt_id < '{high}'"


def load_bucket(con: duckdb.DuckDBPyConnection, plan: Plan, bucket: int) -> None:
    """All candidates of the prompts of a bucket as a table of DuckDB, numbered in their order."""
    names = (f"candidates-{number:05d}" for number in range(len(plan.groups)))
    con.execute(
        f"CREATE TEMP TABLE candidates AS SELECT *, row_number() OVER (ORDER BY prompt_id, {KEY}) AS i "
        f"FROM {work_files(plan, names)} WHERE {in_bucket(plan, bucket)}"
    )
