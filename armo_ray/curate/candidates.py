"""Step that reads scored candidates: each task those of a group of parts, with the columns that a command uses."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from armo_ray.curate.job import CurationJob
from armo_ray.curate.options import MineOptions
from armo_ray.curate.scratch_files import (
    READ_ROWS,
    Written,
    scan_parquet,
    together,
    write_sorted,
)
from armo_ray.curate.tasks import TaskRunner
from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import advice, name_of, parse, quote
from armo_ray.outputs.database import database
from armo_ray.outputs.scores import Scores, check_counted, columns_of, scan
from armo_ray.storage.shards import row_id

_SIDES = ("chosen", "rejected")
KEY = "source, source_row, candidate"
PROMPTS = "prompts"  # scratch file of the ids of the prompts whose earlier candidates are read


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


def read_groups(job: CurationJob, run_tasks: TaskRunner, numbers: Sequence[int]) -> tuple[CurationJob, int]:
    """Read the candidates of some groups of parts.

    Returns the job with these candidates, too, and the number of candidates without a value, which are left out.
    """
    done = run_tasks(partial(read_candidates, job), numbers)
    candidates = together([job.candidates, *(files for files, _ in done)])
    return replace(job, candidates=candidates), sum(without_value for _, without_value in done)


def read_candidates(job: CurationJob, number: int) -> tuple[Written, int]:
    """Write the candidates of a group of parts that have a value; also returns the number of the others."""
    relation = scan_group(job, number)
    if job.num_new is not None and number >= job.num_new:
        relation = (
            f"(SELECT s.* FROM {relation} s SEMI JOIN {chosen_prompts(job)} n ON s.prompt_id = n.prompt_id)"
        )
    skipped = f"EXCLUDE ({', '.join(job.skipped)})" if job.skipped else ""
    text = ", prompt, response" if job.text_at_once else ""
    without_value = 0

    def with_value(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        nonlocal without_value
        for batch in batches:
            without_value += batch["value"].null_count
            yield batch.filter(pc.is_valid(batch["value"])) if batch["value"].null_count else batch

    with database(job.options) as con:
        rows = con.sql(
            f"SELECT * {skipped} FROM (SELECT {job.select}, __id AS id{text} FROM {relation} AS scores)"
        )
        reader = rows.to_arrow_reader(READ_ROWS)
        files = write_sorted(job.scratch, f"candidates-{number:05d}", with_value(reader), reader.schema)
    return files, without_value


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
    return scan_parquet(job.scratch, [PROMPTS])


def load_candidates(con: duckdb.DuckDBPyConnection, candidates: pa.Table, columns: str = "*") -> None:
    """Create the table `candidates`: these columns of all candidates of some prompts.

    Also `prompt`, which numbers the prompts, and `i`, which numbers the candidates in order, both from 1.
    """
    con.register("read_candidates", candidates)
    con.execute(
        f"CREATE TEMP TABLE candidates AS SELECT {columns}, dense_rank() OVER (ORDER BY prompt_id) AS prompt, "
        f"row_number() OVER (ORDER BY prompt_id, {KEY}) AS i FROM read_candidates"
    )


def check_once(con: duckdb.DuckDBPyConnection) -> None:
    """Raises RuntimeError if a candidate is in the table `candidates` twice."""
    query = f"SELECT {KEY} FROM candidates GROUP BY ALL HAVING count(*) > 1 LIMIT 1"
    if twice := con.execute(query).fetchall():
        raise RuntimeError(
            f"candidate {row_id(*twice[0])} was scored twice: its shard is in two of the outputs"
        )
