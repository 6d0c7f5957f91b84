"""Scored candidates, cut into tasks by where they lie and into buckets by their prompts.

A bucket is a range of prompt ids, so all candidates of a prompt are in one bucket, whichever shards and parts
they came from, and buckets one after the other are in the order of prompt ids. A task of reading sorts its rows
by prompt; a task on a bucket then reads of every file the few row groups that hold its range.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray.curate.options import MineOptions
from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import name_of, parse, quote
from armo_ray.outputs.scores import Part, Scores, columns_of, database, literal, scan
from armo_ray.storage.local_files import readable
from armo_ray.storage.store import Store

_GROUP_ROWS = 8192  # few enough that the row groups of a bucket hold little else
Item = TypeVar("Item")
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
        return -(-self.scores.rows // int(self.options.task_rows))


def in_runs(items: Iterable[Item], rows_of: Callable[[Item], int], rows: int) -> list[tuple[Item, ...]]:
    """Items in runs of about so many rows, one after the other."""
    runs: list[list[Item]] = [[]]
    held = 0
    for item in items:
        if runs[-1] and held + rows_of(item) > rows:
            runs.append([])
            held = 0
        runs[-1].append(item)
        held += rows_of(item)
    return [tuple(run) for run in runs]


def select_candidates(scores: Scores, options: MineOptions) -> str:
    """SQL of the columns of a candidate that decide over its pairs, and of those that pairs carry.

    Raises ConfigError where an option names a column that is not there, or cannot be used so.
    """
    with database(options) as con:
        types = columns_of(con, scores)
    numbers = {"value": options.rank_by}
    numbers |= {f"m{i}": name for i, name in enumerate(options.min_margin) if name != "value"}
    numbers |= {f"p{i}": name for i, name in enumerate(options.pareto)}
    columns = {name: f"({parse(text, types, 'number').sql})::DOUBLE" for name, text in numbers.items()}
    for side in _SIDES:
        conditions = [c for c in options.constraint if _side(c, types) == side]
        sql = " AND ".join(parse(c, _of(side, types), prefix=side).sql for c in conditions) or "true"
        columns[f"can_be_{side}"] = f"coalesce({sql}, false)"
    for name in options.keep:
        if name_of(name) not in types:
            raise ConfigError(f"keep: no column {name} in the scores; they have {', '.join(types)}")
    kept = ", ".join(f"{quote(name)}: {quote(name)}" for name in options.keep)
    columns |= {"kept": f"{{{kept}}}"} if kept else {}
    return ", ".join([*_CARRIED, *(f"{sql} AS {name}" for name, sql in columns.items())])


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
    pq.write_table(
        rows,
        sink,
        compression="lz4",
        row_group_size=_GROUP_ROWS,
        use_dictionary=["source"],
        write_page_checksum=True,
    )
    Store(plan.work).write(f"{name}.parquet", sink.getvalue())


def work_files(plan: Plan, names: Iterator[str]) -> str:
    """The rows of files that tasks left, as a relation; types that differ between them become one that holds all."""
    files = ", ".join(literal(readable(f"{plan.work}/{name}.parquet")) for name in names)
    return f"read_parquet([{files}], union_by_name = true, hive_partitioning = false)"


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
