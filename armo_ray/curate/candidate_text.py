"""The text of the candidates that pairs are made of, sorted by prompt as the pairs are."""

from collections.abc import Iterator

import pyarrow as pa

from armo_ray.curate.candidates import Plan, work_files, write_work
from armo_ray.outputs.schema import TEXT_FIELDS
from armo_ray.outputs.scores import database, literal, scan
from armo_ray.outputs.text import Source, read_text

_TEXT_BYTES = 64 << 20  # of text that a task holds before it writes a file
_NONE = pa.schema([("prompt_id", pa.string()), ("row_id", pa.string()), *TEXT_FIELDS]).empty_table()


def _wanted(plan: Plan) -> str:
    return work_files(plan, (f"wanted-{bucket:05d}" for bucket in range(plan.num_buckets)))


def text_of_parts(plan: Plan, number: int) -> list[str]:
    """Write the wanted text of a group of parts, which --keep-text put there; returns the names of files."""
    with database(plan.options) as con:
        rows = con.sql(
            f"SELECT s.prompt_id, s.row_id, s.prompt, s.response FROM ({scan(plan.groups[number])}) s "
            f"SEMI JOIN (SELECT row_id FROM {_wanted(plan)} WHERE task = {number}) w ON s.row_id = w.row_id "
            f"ORDER BY s.prompt_id, s.row_id"
        ).to_arrow_table()
    name = f"text-{number:05d}-00000"
    write_work(plan, name, rows)
    return [name]


def text_of_sources(plan: Plan, task: tuple[int, tuple[Source, ...]]) -> list[str]:
    """Write the wanted text of a group of shards, in files of bounded size; returns their names."""
    number, sources = task
    names: list[str] = []
    waiting: list[pa.Table] = []

    def write() -> None:
        names.append(f"text-{number:05d}-{len(names):05d}")
        rows = pa.concat_tables([_NONE, *waiting]).sort_by(
            [("prompt_id", "ascending"), ("row_id", "ascending")]
        )
        write_work(plan, names[-1], rows)
        waiting.clear()

    for source in sources:
        for table in _wanted_of(plan, source):
            waiting.append(table)
            if sum(rows.nbytes for rows in waiting) > _TEXT_BYTES:
                write()
    if waiting or not names:
        write()
    return names


def _wanted_of(plan: Plan, source: Source) -> Iterator[pa.Table]:
    uri = source.shard.uri
    with database(plan.options) as con:
        con.execute(f"CREATE TEMP TABLE wanted AS FROM {_wanted(plan)} WHERE source = {literal(uri)}")
        rows = {row for (row,) in con.execute("SELECT DISTINCT source_row FROM wanted").fetchall()}
        found = 0
        for read in read_text(source, rows) if rows else ():
            con.register("read", read)
            table = con.sql(
                "SELECT prompt_id, row_id, prompt, response FROM read JOIN wanted USING (source_row, candidate)"
            ).to_arrow_table()
            found += table.num_rows
            yield table
        (wanted,) = con.execute("SELECT count(*) FROM wanted").fetchall()[0]
    if found != wanted:
        raise RuntimeError(f"{uri}: {wanted} candidates of it were scored, {found} of them are in it now")
