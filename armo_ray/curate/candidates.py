"""Scored candidates, divided into reading tasks by part and into buckets by prompt.

A bucket is a range of prompt ids: it holds all candidates of its prompts, whichever shards and parts they came
from, and consecutive buckets are in order of prompt id. A reading task sorts its rows by prompt, so that a bucket's
task reads only the few row groups of each file that cover its range.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from armo_ray.curate.options import MineOptions
from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import advice, name_of, parse, quote
from armo_ray.outputs.database import database
from armo_ray.outputs.scores import Part, Scores, check_counted, columns_of, literal, scan
from armo_ray.storage.local_files import readable
from armo_ray.storage.store import Store

_GROUP_ROWS = 8192  # small, so that a bucket reads few rows of other buckets
_FILTERED = ("prompt_id", "id", "source")  # columns of scratch files by which tasks choose rows
Item = TypeVar("Item")
_SIDES = ("chosen", "rejected")
KEY = "source, source_row, candidate"
BY_PROMPT = (
    "('0x' || prompt_id[:8])::UINTEGER"  # by which a bucket holds a prompt; sorts faster than the text
)
PROMPTS = "prompts"  # scratch file of the ids of the prompts whose earlier candidates are read


@dataclass(frozen=True)
class CurationJob:
    """What every task of `mine` or `label` needs to know."""

    scores: Scores
    options: Any  # MineOptions or LabelOptions
    scratch: str  # folder or URI of the files that tasks write for other tasks
    select: str  # SQL expressions of a candidate's columns
    part_groups: tuple[tuple[Part, ...], ...]  # the parts of each reading task
    rows: int  # candidates that are read
    increment: int | None = None  # number of the increment of a dataset that grows
    num_new: int | None = None  # groups that are read whole, the first ones; of the others only some prompts
    known: str = ""  # SQL relation of the MinHash digests of earlier increments
    first_bucket: int = 0  # number of the first bucket in the names of parts
    screened: bool = False  # whether it is known already that no prompt is to be left out
    late: tuple[str, ...] = ()  # columns that are read for the selected candidates, with their text
    skipped: tuple[str, ...] = ()  # columns that are read only then
    text_at_once: bool = False  # whether the text of all candidates is read with their other columns

    @property
    def num_buckets(self) -> int:
        return -(-self.rows // int(self.options.task_rows))

    def part_name(self, bucket: int) -> str:
        """The name of a bucket's part in every split."""
        number = f"{self.first_bucket + bucket:05d}"
        return f"part-{number}" if self.increment is None else f"part-{self.increment:05d}-{number}"


def whole_job(scores: Scores, options: Any, scratch: str, select: str) -> CurationJob:
    """A job that reads all scores."""
    groups = batched_by_rows(scores.parts, lambda part: part.rows, options.task_rows)
    return CurationJob(scores, options, scratch, select, tuple(groups), scores.rows)


def batched_by_rows(
    items: Iterable[Item], rows_of: Callable[[Item], int], rows: int
) -> list[tuple[Item, ...]]:
    """Consecutive items in batches of at most `rows` rows; an item with more is a batch of its own."""
    batches: list[list[Item]] = [[]]
    batch_rows = 0
    for item in items:
        if batches[-1] and batch_rows + rows_of(item) > rows:
            batches.append([])
            batch_rows = 0
        batches[-1].append(item)
        batch_rows += rows_of(item)
    return [tuple(batch) for batch in batches]


def select_candidates(scores: Scores, options: MineOptions) -> str:
    """SQL expressions of a candidate's columns: those that decide its pairs, and those that pairs keep.

    Raises ConfigError if an option names a column that does not exist or that has the wrong type.
    """
    with database(options) as con:
        types = columns_of(con, scores)
        if options.max_length_ratio is not None:
            check_counted(con, scores, "--max-length-ratio")
        if options.length_control != "none":
            check_counted(con, scores, f"--length-control {options.length_control}")
    numbers = {"value": options.rank_by}
    numbers |= {f"m{i}": name for i, name in enumerate(options.min_margin) if name != "value"}
    numbers |= {f"p{i}": name for i, name in enumerate(options.pareto)}
    columns = {name: f"({parse(text, types, 'number').sql})::DOUBLE" for name, text in numbers.items()}
    for side in _SIDES:
        conditions = [c for c in options.constraint if _side(c, types) == side]
        sql = " AND ".join(parse(c, _side_types(side, types), prefix=side).sql for c in conditions) or "true"
        columns[f"can_be_{side}"] = f"coalesce({sql}, false)"
    for name in options.keep:
        if name_of(name) not in types:
            raise ConfigError(f"keep: no column {name} in the scores; {advice(name, types)}")
    kept = ", ".join(f"{quote(name)}: {quote(name)}" for name in options.keep)
    columns |= {"kept": f"{{{kept}}}"} if kept else {}
    return ", ".join([*_BASE_COLUMNS, *(f"{sql} AS {name}" for name, sql in columns.items())])


_BASE_COLUMNS = (
    "prompt_id",
    "row_id",
    *KEY.split(", "),
    "score",
    "rewards",
    "num_prompt_tokens",
    "num_response_tokens",
)


def _side_types(side: str, types: dict[str, str]) -> dict[str, str]:
    return {f"{side}.{name}": kind for name, kind in types.items()}


def _side(condition: str, types: dict[str, str]) -> str:
    """The side whose columns a constraint names. Raises ConfigError if it names both sides or neither."""
    expression = parse(condition, _side_types(_SIDES[0], types) | _side_types(_SIDES[1], types))
    if expression.quantiles:
        raise ConfigError(
            f"constraint {condition!r}: quantiles are not supported here; use armo-ray filter for them"
        )
    sides = {name.partition(".")[0] for name in expression.columns}
    if len(sides) != 1:
        raise ConfigError(f"constraint {condition!r}: expected columns of either chosen or rejected")
    return sides.pop()


def read_candidates(job: CurationJob, number: int) -> int:
    """Write the candidates of a group of parts, sorted by prompt; returns the number of candidates without a value."""
    relation = scan_group(job, number)
    if job.num_new is not None and number >= job.num_new:
        relation = (
            f"(SELECT s.* FROM {relation} s SEMI JOIN {chosen_prompts(job)} n ON s.prompt_id = n.prompt_id)"
        )
    skipped = f"EXCLUDE ({', '.join(job.skipped)})" if job.skipped else ""
    text = ", prompt, response" if job.text_at_once else ""
    with database(job.options) as con:
        rows = con.sql(
            f"SELECT * {skipped} FROM (SELECT {job.select}, __id AS id{text} FROM {relation} AS scores) "
            f"ORDER BY {BY_PROMPT}"
        ).to_arrow_table()
    without_value = int(rows["value"].null_count)
    rows = rows.filter(pc.is_valid(rows["value"])) if without_value else rows
    write_scratch(job, f"candidates-{number:05d}", rows)
    return without_value


def scan_group(job: CurationJob, number: int) -> str:
    """SQL relation of the rows of a group of parts; `__id`, a BIGINT, tells apart all candidates of the job."""
    first, rows = sum(map(len, job.part_groups[:number])), scan(job.part_groups[number], numbered=True)
    return f"(SELECT *, ({first} + __part)::BIGINT << 32 | __row AS __id FROM ({rows}))"


def of_group(job: CurationJob, number: int) -> str:
    """SQL condition that `id` is that of a candidate of a group of parts."""
    first = sum(map(len, job.part_groups[:number]))
    return f"id >= {first << 32} AND id < {first + len(job.part_groups[number]) << 32}"


def chosen_prompts(job: CurationJob) -> str:
    """SQL relation of the ids of the prompts whose earlier candidates are read."""
    return scan_scratch(job, iter([PROMPTS]))


def candidates_in(job: CurationJob, groups: Iterable[int]) -> str:
    """SQL relation of the candidates that some reading tasks wrote."""
    return scan_scratch(job, (f"candidates-{number:05d}" for number in groups))


def write_scratch(job: CurationJob, name: str, rows: pa.Table) -> None:
    """Write sorted rows as a scratch file for other tasks."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows,
        sink,
        compression="lz4",
        row_group_size=_GROUP_ROWS,
        use_dictionary=["source"],
        write_statistics=[name for name in _FILTERED if name in rows.column_names],
        write_page_checksum=True,
    )
    Store(job.scratch).write(f"{name}.parquet", sink.getvalue().to_pybytes(), lasting=False)


def scan_scratch(job: CurationJob, names: Iterator[str]) -> str:
    """SQL relation of the rows of scratch files; columns whose types differ between files take a type that fits all."""
    files = ", ".join(literal(readable(f"{job.scratch}/{name}.parquet")) for name in names)
    return f"read_parquet([{files}], union_by_name = true, hive_partitioning = false)"


def in_bucket(job: CurationJob, bucket: int) -> str:
    """SQL condition that a prompt is in a bucket."""
    low, high = (f"{edge * 16**8 // job.num_buckets:08x}" for edge in (bucket, bucket + 1))
    above = f"prompt_id >= '{low}'"
    return above if bucket + 1 == job.num_buckets else f"{above} AND prompt_id < '{high}'"


def load_bucket(con: duckdb.DuckDBPyConnection, job: CurationJob, bucket: int, columns: str = "*") -> None:
    """Create the table `candidates`: all candidates of a bucket's prompts, with `i` their 1-based place in order."""
    con.execute(
        f"CREATE TEMP TABLE candidates AS SELECT {columns}, row_number() OVER (ORDER BY prompt_id, {KEY}) AS i "
        f"FROM {candidates_in(job, range(len(job.part_groups)))} WHERE {in_bucket(job, bucket)}"
    )
