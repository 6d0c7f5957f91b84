"""Step that reads the text and the late columns of selected candidates."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import pyarrow as pa

from armo_ray.curate.candidates import KEY, of_group, scan_group
from armo_ray.curate.job import CurationJob, batched_by_rows
from armo_ray.curate.scratch_files import READ_ROWS, Written, scan_parquet, together, write_sorted
from armo_ray.curate.tasks import TaskRunner
from armo_ray.outputs.database import database
from armo_ray.outputs.schema import TEXT_FIELDS
from armo_ray.outputs.scores import literal
from armo_ray.outputs.text import Source, read_text

_SCHEMA = pa.schema([("prompt_id", pa.string()), ("id", pa.int64()), *TEXT_FIELDS])


def select_needed(job: CurationJob, where: str) -> str:
    """SQL of the rows of the table `candidates` whose text is needed, in the order in which their text is stored."""
    if job.scores.has_text:
        return f"SELECT id FROM candidates WHERE {where} ORDER BY id"
    return f"SELECT prompt_id, id, {KEY} FROM candidates WHERE {where} ORDER BY {KEY}"


def _text_needed(job: CurationJob) -> str:
    return scan_parquet(job.scratch, (f"text-needed-{bucket:05d}" for bucket in range(job.num_buckets)))


class Selected(NamedTuple):
    """What the selected candidates have late."""

    texts: Written  # prompt_id, id, prompt, response
    late: Written | None  # prompt_id, id and the job's late columns; None if those are with the texts


def read_needed(job: CurationJob, run_tasks: TaskRunner, sources: Iterable[Source]) -> Selected:
    """Write the text and the late columns of the selected candidates, text from their parts or from these shards."""
    from_parts = None
    if job.scores.has_text or job.late:
        from_parts = together(run_tasks(partial(read_selected, job), range(len(job.part_groups))))
        if job.scores.has_text:
            return Selected(from_parts, None)
    groups = batched_by_rows(sources, lambda source: source.scored, job.options.task_rows)
    return Selected(together(run_tasks(partial(text_of_sources, job), list(enumerate(groups)))), from_parts)


def with_text(rows: pa.Table, texts: pa.Table, columns: Mapping[str, tuple[str, str]]) -> pa.Table:
    """Rows with columns of text before the others.

    DuckDB works on 2,048 rows at once, which is too much text if responses are long: so it joins and sorts only the
    places of text.

    Args:
        columns: by name, a column of `texts`, and the column of `rows` that has places in it, which is left out.
    """
    places = {place for _, place in columns.values()}
    taken = {name: _taken(texts[column], rows[place]) for name, (column, place) in columns.items()}
    others = {name: rows[name] for name in rows.column_names if name not in places}
    return pa.table(taken | others)


def _taken(texts: pa.ChunkedArray, places: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return texts.take(places)
    except pa.ArrowInvalid:  # more than 2 GiB, which one array cannot hold
        half = len(places) // 2
        if not half:
            raise
        halves = (_taken(texts, places.slice(0, half)), _taken(texts, places.slice(half)))
        return pa.chunked_array([chunk for taken in halves for chunk in taken.chunks])


def read_selected(job: CurationJob, number: int) -> Written:
    """Write the late columns of the selected candidates of a group of parts, and their text if their parts have it."""
    text = [field.name for field in TEXT_FIELDS] if job.scores.has_text else []
    late = [*job.late, *text]
    with database(job.options) as con:
        rows = con.sql(
            f"SELECT prompt_id, id, {', '.join(late)} FROM (SELECT {', '.join([job.select, *text])}, __id AS id "
            f"FROM {scan_group(job, number)} AS scores) "
            f"SEMI JOIN (SELECT id FROM {_text_needed(job)} WHERE {of_group(job, number)}) USING (id)"
        )
        reader = rows.to_arrow_reader(READ_ROWS)
        return write_sorted(job.scratch, f"selected-{number:05d}", reader, reader.schema)


def text_of_sources(job: CurationJob, task: tuple[int, tuple[Source, ...]]) -> Written:
    """Write the needed text of a group of source shards. `task` is the group's index and its shards."""
    number, sources = task
    batches = (
        batch for source in sources for rows in _needed_tables(job, source) for batch in rows.to_batches()
    )
    return write_sorted(job.scratch, f"text-{number:05d}", batches, _SCHEMA)


def _needed_tables(job: CurationJob, source: Source) -> Iterator[pa.Table]:
    uri = source.shard.uri
    with database(job.options) as con:
        con.execute(f"CREATE TEMP TABLE needed AS FROM {_text_needed(job)} WHERE source = {literal(uri)}")
        rows = {row for (row,) in con.execute("SELECT DISTINCT source_row FROM needed").fetchall()}
        num_read = 0
        for candidates in read_text(source, rows) if rows else ():
            con.register("read", candidates)
            table = con.sql(
                "SELECT prompt_id, id, prompt, response FROM read JOIN needed USING (source_row, candidate)"
            ).to_arrow_table()
            num_read += table.num_rows
            yield table
        (num_needed,) = con.execute("SELECT count(*) FROM needed").fetchall()[0]
    if num_read != num_needed:
        raise RuntimeError(
            f"{uri}: the text of {num_needed} candidates is needed, but the shard now has only {num_read} of them"
        )
