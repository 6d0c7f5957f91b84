"""What a dataset that grows holds of some prompts: their candidates in scores that it has read, and their rows."""

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from armo_ray.curate.candidates import PROMPTS, chosen_prompts, read_groups
from armo_ray.curate.job import CurationJob, batched_by_rows
from armo_ray.curate.scratch_files import read_column, write_parquet
from armo_ray.curate.tasks import TaskRunner
from armo_ray.outputs.database import database
from armo_ray.outputs.dataset import encode
from armo_ray.outputs.scores import Part, scan
from armo_ray.storage.local_files import Opened
from armo_ray.storage.parts import put, read_content
from armo_ray.storage.records import PartEntry
from armo_ray.storage.store import Store

_GONE = "prompts-gone"  # scratch file of the ids of prompts whose rows are taken out


def read_earlier(
    job: CurationJob, prompts: pa.Table, parts: Sequence[Part], run_tasks: TaskRunner
) -> CurationJob:
    """Read the candidates that some parts hold of these prompts, too. Returns the job with all groups that were read.

    `prompts` has a column prompt_id, sorted.
    """
    write_parquet(job.scratch, PROMPTS, prompts)
    size = job.options.task_rows
    old = batched_by_rows(parts, lambda part: part.rows, size) if parts else []
    found = [part for some in run_tasks(partial(_with_prompts, job), old) for part in some]
    if not found:
        return job
    first, groups = len(job.part_groups), batched_by_rows(found, lambda part: part.rows, size)
    job = replace(job, part_groups=(*job.part_groups, *groups), num_new=first)
    new = job.candidates.rows
    job, _ = read_groups(job, run_tasks, range(first, len(job.part_groups)))
    return replace(job, rows=job.rows + job.candidates.rows - new)


def prompts_in(job: CurationJob, names: Iterable[str]) -> pa.Table:
    """The ids of the prompts of the candidates in some files, sorted."""
    with database(job.options) as con:
        con.register("prompts", read_column(job.scratch, names, "prompt_id"))
        return con.sql("SELECT DISTINCT prompt_id FROM prompts ORDER BY prompt_id").to_arrow_table()


def _with_prompts(job: CurationJob, parts: Sequence[Part]) -> list[Part]:
    """Those of some parts that have candidates of the prompts."""
    with database(job.options) as con:
        places = con.execute(
            f"SELECT DISTINCT s.__part FROM ({scan(parts, numbered=True)}) s "
            f"SEMI JOIN {chosen_prompts(job)} n ON s.prompt_id = n.prompt_id"
        ).fetchall()
    return [parts[place] for (place,) in sorted(places)]


def take_out(
    job: CurationJob, prompts: Iterable[str], parts: Sequence[PartEntry], run_tasks: TaskRunner
) -> list[tuple[PartEntry, PartEntry | None]]:
    """Write the parts with rows of these prompts again, without these rows.

    Returns each with its successor, None of a part of which no row is left: `datasets` cannot read an empty one.
    """
    gone = sorted(prompts)
    if not gone:
        return []
    write_parquet(job.scratch, _GONE, pa.table({"prompt_id": pa.array(gone, pa.string())}))
    written = run_tasks(partial(_without_rows, job), parts)
    return [
        (old, new if new.rows else None)
        for old, new in zip(parts, written, strict=True)
        if new.rows < old.rows
    ]


def _without_rows(job: CurationJob, part: PartEntry) -> PartEntry:
    """Write a part without the rows of the prompts that are gone, unless it has none of these or no others."""
    store = Store(job.options.output)
    scratch = io.BytesIO(Store(job.scratch).read(f"{_GONE}.parquet"))
    gone = pq.read_table(scratch)["prompt_id"].combine_chunks()
    if part.path.endswith(".jsonl"):
        ids, lines = set(gone.to_pylist()), read_content(store, part).splitlines(keepends=True)
        left = [line for line in lines if json.loads(line)["prompt_id"] not in ids]
        content, rows = b"".join(left), len(left)
    else:
        with Opened().open(f"{store.uri}/{part.path}") as stream:
            there = pq.read_table(stream, columns=["prompt_id"])["prompt_id"]
        if not pc.any(pc.is_in(there, gone)).as_py():
            return part
        table = pq.read_table(io.BytesIO(read_content(store, part)))
        table = table.filter(pc.invert(pc.is_in(table["prompt_id"], gone)))
        content, rows = encode(table, "parquet"), table.num_rows
    if rows in (0, part.rows):
        return replace(part, rows=rows)
    return put(store, _successor(part.path, job.increment or 0), content, rows)


def _successor(path: str, increment: int) -> str:
    """The name of a part as an increment leaves it: part-00001-00000.parquet becomes part-00001-00000-00003.parquet."""
    folder, _, name = path.rpartition("/")
    stem, dot, kind = name.partition(".")
    origin = "-".join(stem.split("-")[:3])
    return f"{folder}/{origin}-{increment:05d}{dot}{kind}"
