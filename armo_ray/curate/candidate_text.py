"""Step that reads the text of selected candidates, sorted by prompt as the selected rows are."""

from collections.abc import Iterable, Iterator
from functools import partial

import pyarrow as pa

from armo_ray.curate.candidates import CurationJob, batched_by_rows, scan_scratch, write_scratch
from armo_ray.curate.tasks import TaskRunner
from armo_ray.outputs.database import database
from armo_ray.outputs.schema import TEXT_FIELDS
from armo_ray.outputs.scores import literal, scan
from armo_ray.outputs.text import Source, read_text

_TEXT_BYTES = 64 << 20  # of text buffered by a task before it writes a file
_EMPTY = pa.schema([("prompt_id", pa.string()), ("row_id", pa.string()), *TEXT_FIELDS]).empty_table()


def _text_needed(job: CurationJob) -> str:
    return scan_scratch(job, (f"text-needed-{bucket:05d}" for bucket in range(job.num_buckets)))


def read_needed(job: CurationJob, run_tasks: TaskRunner, sources: Iterable[Source]) -> list[str]:
    """Write the text of the selected candidates, from their parts or from these shards; returns file names."""
    if job.scores.has_text:
        files = run_tasks(partial(text_of_parts, job), range(len(job.part_groups)))
    else:
        groups = batched_by_rows(sources, lambda source: source.scored, job.options.task_rows)
        files = run_tasks(partial(text_of_sources, job), list(enumerate(groups)))
    return [name for names in files for name in names]


def text_of_parts(job: CurationJob, number: int) -> list[str]:
    """Write the needed text from a group of parts, where --keep-text stored it; returns file names."""
    with database(job.options) as con:
        rows = con.sql(
            f"SELECT s.prompt_id, s.row_id, s.prompt, s.response FROM ({scan(job.part_groups[number])}) s "
            f"SEMI JOIN (SELECT row_id FROM {_text_needed(job)} WHERE task = {number}) w ON s.row_id = w.row_id "
            f"ORDER BY s.prompt_id, s.row_id"
        ).to_arrow_table()
    name = f"text-{number:05d}-00000"
    write_scratch(job, name, rows)
    return [name]


def text_of_sources(job: CurationJob, task: tuple[int, tuple[Source, ...]]) -> list[str]:
    """Read the needed text from a group of source shards into files of bounded size; returns their names.

    `task` is the group's index and its shards.
    """
    number, sources = task
    names: list[str] = []
    buffered: list[pa.Table] = []

    def write() -> None:
        names.append(f"text-{number:05d}-{len(names):05d}")
        rows = pa.concat_tables([_EMPTY, *buffered]).sort_by(
            [("prompt_id", "ascending"), ("row_id", "ascending")]
        )
        write_scratch(job, names[-1], rows)
        buffered.clear()

    for source in sources:
        for table in _needed_tables(job, source):
            buffered.append(table)
            if sum(rows.nbytes for rows in buffered) > _TEXT_BYTES:
                write()
    if buffered or not names:
        write()
    return names


def _needed_tables(job: CurationJob, source: Source) -> Iterator[pa.Table]:
    uri = source.shard.uri
    with database(job.options) as con:
        con.execute(f"CREATE TEMP TABLE needed AS FROM {_text_needed(job)} WHERE source = {literal(uri)}")
        rows = {row for (row,) in con.execute("SELECT DISTINCT source_row FROM needed").fetchall()}
        num_read = 0
        for candidates in read_text(source, rows) if rows else ():
            con.register("read", candidates)
            table = con.sql(
                "SELECT prompt_id, row_id, prompt, response FROM read JOIN needed USING (source_row, candidate)"
            ).to_arrow_table()
            num_read += table.num_rows
            yield table
        (num_needed,) = con.execute("SELECT count(*) FROM needed").fetchall()[0]
    if num_read != num_needed:
        raise RuntimeError(
            f"{uri}: the text of {num_needed} candidates is needed, but the shard now has only {num_read} of them"
        )
