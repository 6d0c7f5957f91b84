"""The MinHash digests that a dataset that grows keeps, so that new prompts are compared with all earlier ones.

`_minhash/00001.parquet` holds the digests of an increment: of the prompts that it did, and of those that began or ended
being near-duplicates. Of a prompt in several files the last counts; without a digest, the prompt has no pairs any more.
"""

from collections.abc import Set
from dataclasses import replace

import pyarrow as pa

from armo_ray.curate.excluded_prompts import minhashes
from armo_ray.curate.job import CurationJob
from armo_ray.curate.scratch_files import scan_parquet, write_parquet
from armo_ray.outputs.database import database
from armo_ray.outputs.dataset import encode
from armo_ray.outputs.increments import MINHASH, Growing
from armo_ray.outputs.scores import literal
from armo_ray.storage.local_files import readable
from armo_ray.storage.store import Store

_AGAIN = "prompts-again"


def with_known(job: CurationJob, growing: Growing, again: pa.Table) -> CurationJob:
    """The job with the digests of all earlier prompts but those that are done again."""
    write_parquet(job.scratch, _AGAIN, again)
    paths = [f"{growing.store.uri}/{MINHASH}/{number:05d}.parquet" for number in range(1, growing.number)]
    if not paths:
        return job
    files = ", ".join(literal(readable(path)) for path in paths)
    known = (
        f"(SELECT prompt_id, digest, duplicate FROM read_parquet([{files}], hive_partitioning = false) "
        f"WHERE prompt_id NOT IN (SELECT prompt_id FROM {_again(job)}) "
        f"QUALIFY row_number() OVER (PARTITION BY prompt_id ORDER BY increment DESC) = 1)"
    )
    return replace(job, known=f"(SELECT * FROM {known} WHERE digest IS NOT NULL)")


def update(job: CurationJob, duplicates: Set[str]) -> tuple[list[str], list[str]]:
    """Write the digests of an increment. Returns the earlier prompts that are near-duplicates now, and those that no
    longer are."""
    number, of_job = job.increment, minhashes(job)
    with database(job.options) as con:
        con.execute("CREATE TEMP TABLE now (prompt_id VARCHAR)")
        con.execute("INSERT INTO now SELECT unnest($1)", [sorted(duplicates)])
        con.execute("CREATE TEMP TABLE changed (prompt_id VARCHAR, digest UINTEGER[], duplicate BOOLEAN)")
        if job.known:
            con.execute(
                f"INSERT INTO changed SELECT prompt_id, digest, NOT duplicate FROM {job.known} k "
                f"WHERE duplicate <> (prompt_id IN (FROM now))"
            )
        rows = con.sql(
            f"SELECT {number}::INTEGER AS increment, * FROM ("
            f"SELECT prompt_id, digest, prompt_id IN (FROM now) AS duplicate FROM {of_job} UNION ALL FROM changed "
            f"UNION ALL SELECT prompt_id, NULL, false FROM {_again(job)} "
            f"WHERE prompt_id NOT IN (SELECT prompt_id FROM {of_job})) ORDER BY prompt_id"
        ).to_arrow_table()
        changed = con.execute("SELECT prompt_id, duplicate FROM changed ORDER BY prompt_id").fetchall()
    Store(job.options.output).write(f"{MINHASH}/{number:05d}.parquet", encode(rows, "parquet"))
    return [p for p, duplicate in changed if duplicate], [p for p, duplicate in changed if not duplicate]


def _again(job: CurationJob) -> str:
    return scan_parquet(job.scratch, [_AGAIN])
