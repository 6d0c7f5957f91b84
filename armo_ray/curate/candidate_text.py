"""Step that reads the text and the late columns of selected candidates, sorted by prompt as the selected rows are."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import pyarrow as pa

from armo_ray.curate.candidates import (
    BY_PROMPT,
    CurationJob,
    batched_by_rows,
    in_bucket,
    of_group,
    scan_group,
    scan_scratch,
    write_scratch,
)
from armo_ray.curate.tasks import TaskRunner
from armo_ray.outputs.database import database
from armo_ray.outputs.schema import TEXT_FIELDS
from armo_ray.outputs.scores import literal
from armo_ray.outputs.text import Source, read_text

_TEXT_BYTES = 64 << 20  # of text buffered by a task before it writes a file
_EMPTY = pa.schema([("prompt_id", pa.string()), ("id", pa.int64()), *TEXT_FIELDS]).empty_table()


def _text_needed(job: CurationJob) -> str:
    return scan_scratch(job, (f"text-needed-{bucket:05d}" for bucket in range(job.num_buckets)))


class Selected(NamedTuple):
    """Names of the scratch files of what the selected candidates have late."""

    texts: list[str]  # prompt_id, id, prompt, response
    late: list[str]  # prompt_id, id and the job's late columns; none if those are with the texts


def read_needed(job: CurationJob, run_tasks: TaskRunner, sources: Iterable[Source]) -> Selected:
    """Write the text and the late columns of the selected candidates, text from their parts or from these shards."""
    of_parts: list[str] = []
    if job.scores.has_text or job.late:
        of_parts = run_tasks(partial(read_selected, job), range(len(job.part_groups)))
    if job.scores.has_text:
        return Selected(of_parts, [])
    groups = batched_by_rows(sources, lambda source: source.scored, job.options.task_rows)
    files = run_tasks(partial(text_of_sources, job), list(enumerate(groups)))
    return Selected([name for names in files for name in names], of_parts)


def selected(job: CurationJob, files: Selected, bucket: int) -> str:
    """SQL relation of the selected candidates of a bucket, with text."""
    texts = f"SELECT * FROM {scan_scratch(job, iter(files.texts))} WHERE {in_bucket(job, bucket)}"
    if not files.late:
        return f"({texts})"
    late = f"SELECT * EXCLUDE (prompt_id) FROM {scan_scratch(job, iter(files.late))} WHERE {in_bucket(job, bucket)}"
    return f"(SELECT * FROM ({texts}) JOIN ({late}) USING (id))"


def read_selected(job: CurationJob, number: int) -> str:
    """Write the late columns of the selected candidates of a group of parts, and their text if --keep-text stored it.

    Returns the file's name.
    """
    text = [field.name for field in TEXT_FIELDS] if job.scores.has_text else []
    late = [*job.late, *text]
    with database(job.options) as con:
        rows = con.sql(
            f"SELECT prompt_id, id, {', '.join(late)} FROM (SELECT {', '.join([job.select, *text])}, __id AS id "
            f"FROM {scan_group(job, number)} AS scores) "
            f"SEMI JOIN (SELECT id FROM {_text_needed(job)} WHERE {of_group(job, number)}) USING (id) "
            f"ORDER BY {BY_PROMPT}"
        ).to_arrow_table()
    name = f"selected-{number:05d}"
    write_scratch(job, name, rows)
    return name


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
            [("prompt_id", "ascending"), ("id", "ascending")]
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
                "SELECT prompt_id, id, prompt, response FROM read JOIN needed USING (source_row, candidate)"
            ).to_arrow_table()
            num_read += table.num_rows
            yield table
        (num_needed,) = con.execute("SELECT count(*) FROM needed").fetchall()[0]
    if num_read != num_needed:
        raise RuntimeError(
            f"{uri}: the text of {num_needed} candidates is needed, but the shard now has only {num_read} of them"
        )
