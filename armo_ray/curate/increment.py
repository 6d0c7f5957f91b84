"""`mine --append` and `label --append`: rows of what was scored since the last increment.

A prompt that gets candidates later is done again from all its candidates, old and new, and its old rows are replaced.
So the increments together hold the rows of one run over everything.
"""

import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from armo_ray.curate.candidates import (
    NEW_PROMPTS,
    CurationJob,
    batched_by_rows,
    candidates_in,
    new_prompts,
    read_candidates,
    write_scratch,
)
from armo_ray.curate.tasks import TaskRunner, engine, per_task, scratch_folder
from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import name_of
from armo_ray.formatting.tables import markdown_table
from armo_ray.outputs.dataset import Made, encode, finish
from armo_ray.outputs.increments import Growing, Increment, Making, growing_output, numbers
from armo_ray.outputs.scores import Part, Scores, columns_of, database, scan
from armo_ray.outputs.text import Source, find_sources
from armo_ray.storage.json_files import digest_of, unit_of
from armo_ray.storage.local_files import Opened
from armo_ray.storage.parts import put, read_content
from armo_ray.storage.records import PartEntry
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)

_RUNNING = {"scores", "output", "append", "date", "memory", "threads", "spill", "engine", "task_rows"}
_AGAIN = "prompts-again"  # scratch file of the ids of prompts that are done again
_PROMPTS = "SELECT DISTINCT prompt_id FROM {} ORDER BY prompt_id"
_SHOWN = 10  # increments in the card


@dataclass(frozen=True)
class Rows:
    """What a command made of the candidates of a job."""

    parts: Sequence[PartEntry]
    counts: Mapping[str, Any]
    contaminated: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """What `mine` and `label` do differently."""

    name: str
    scores: Scores
    options: Any  # MineOptions or LabelOptions
    select: str  # SQL expressions of a candidate's columns
    state: Mapping[str, str]  # digests of what decides rows besides the options, by what it is
    about: str  # what a row is, in Markdown
    reads_text: bool
    begin: Callable[[CurationJob], None]
    make: Callable[[CurationJob, TaskRunner, Sequence[Source]], Rows]
    publish: Callable[[Growing], None]
    details: Mapping[str, Any] = field(default_factory=dict)  # more entries of the manifest


def append(command: Command) -> None:
    """Add an increment to a dataset, or make its first. Without new scores it stays as it is.

    Raises ConfigError if the dataset was made by another command, with other options, or of scores that are gone.
    """
    options = command.options
    settings = options.model_dump(mode="json", exclude_defaults=True, exclude=_RUNNING)
    with growing_output(options.output, Making(command.name, settings, command.state)) as growing:
        units = _units(command.scores)
        new = _new_units(growing, units)
        if new:
            growing = growing.commit(_increment(command, growing, units, new))
            _log(growing)
        else:
            logger.info("%s: nothing was scored since its last increment: it stays as it is", options.output)
        if not growing.is_published():
            command.publish(growing)
            _publish(command, growing)
        growing.delete_stale()


def columns_digest(select: str, scores: Scores, options: Any) -> str:
    """A digest of the SQL of a candidate's columns and of the types of kept columns."""
    kept = {}
    if options.keep:
        with database(options) as con:
            types = columns_of(con, scores)
        kept = {name: types.get(name_of(name)) for name in options.keep}
    return digest_of(json.dumps([select, kept], sort_keys=True).encode())


def _units(scores: Scores) -> dict[str, dict[str, list[Part]]]:
    """The parts of every unit, by output and unit."""
    units: dict[str, dict[str, list[Part]]] = {output: {} for output in scores.outputs}
    for part in scores.parts:
        output = scores.outputs[part.output]
        unit = unit_of(part.uri.removeprefix(f"{output.rstrip('/')}/"))
        units[output].setdefault(unit or "", []).append(part)
    return units


def _digest(parts: Iterable[Part]) -> str:
    return digest_of(json.dumps(sorted([p.uri, p.rows, p.digest or ""] for p in parts)).encode())[:16]


def _new_units(growing: Growing, units: Mapping[str, Mapping[str, list[Part]]]) -> dict[str, dict[str, str]]:
    """Digests of the units that no increment read, by output and unit.

    Raises ConfigError if scores that an increment read are gone or differ.
    """
    now = {output: {unit: _digest(parts) for unit, parts in of.items()} for output, of in units.items()}
    used = growing.units
    for output, before in used.items():
        if output not in now:
            raise ConfigError(f"output {growing.store.uri} has rows from {output}: give these scores too")
        gone = sorted(unit for unit, digest in before.items() if now[output].get(unit) != digest)
        if gone:
            raise ConfigError(
                f"output {growing.store.uri} has rows from {len(gone)} units that {output} no longer holds or holds "
                f"with other scores, such as {gone[0]}: make the dataset anew, in another output"
            )
    new = {
        output: {u: d for u, d in of.items() if u not in used.get(output, {})} for output, of in now.items()
    }
    return {output: of for output, of in new.items() if of}


def _increment(
    command: Command,
    growing: Growing,
    units: Mapping[str, Mapping[str, list[Part]]],
    new: Mapping[str, Mapping[str, str]],
) -> Increment:
    """Write the parts of an increment."""
    options, rows = command.options, command.options.task_rows
    parts: dict[bool, list[Part]] = {True: [], False: []}
    for output, of in units.items():
        for unit, listed in of.items():
            parts[unit in new.get(output, {})] += listed
    groups = tuple(batched_by_rows(parts[True], lambda part: part.rows, rows))
    num_rows = sum(part.rows for part in parts[True])
    with scratch_folder(options) as scratch, engine(options) as run_tasks:
        job = CurationJob(
            command.scores, per_task(options), scratch, command.select, groups, num_rows, growing.number
        )
        command.begin(job)
        job, without_value, again = _read(job, parts[False], run_tasks)
        made = command.make(job, run_tasks, _sources(command, job))
        replaced = _replace(job, growing.parts, run_tasks) if again else []
        left_out = _no_longer(job, growing.contaminated.keys() - made.contaminated.keys()) if again else {}
    counts = {
        "candidates without a value": without_value,
        **made.counts,
        "prompts done again": again,
        "rows replaced": sum(old.rows - new.rows for old, new in replaced),
    }
    return Increment(
        units=new,
        parts=(*made.parts, *(new for _, new in replaced)),
        replaced=tuple(old.path for old, _ in replaced),
        counts=counts,
        contaminated={**left_out, **made.contaminated},
    )


def _read(job: CurationJob, old: Sequence[Part], run_tasks: TaskRunner) -> tuple[CurationJob, int, int]:
    """Read the new candidates, and the old ones of their prompts.

    Returns the job with the groups that were read, the number of new candidates without a value, and of prompts that
    have old candidates.
    """
    new = range(len(job.part_groups))
    without_value = sum(run_tasks(partial(read_candidates, job), new))
    groups = _groups_again(job, old, run_tasks) if old else []
    if not groups:
        return job, without_value, 0
    job = replace(job, part_groups=(*job.part_groups, *groups), num_new=len(new))
    read = range(len(new), len(job.part_groups))
    run_tasks(partial(read_candidates, job), read)
    with database(job.options) as con:
        again = con.sql(_PROMPTS.format(candidates_in(job, read))).to_arrow_table()
        (rows,) = con.sql(f"SELECT count(*) FROM {candidates_in(job, read)}").fetchall()[0]
    write_scratch(job, _AGAIN, again)
    logger.info("read %d earlier candidates of %d prompts again", rows, again.num_rows)
    return replace(job, rows=job.rows + rows), without_value, again.num_rows


def _groups_again(job: CurationJob, old: Sequence[Part], run_tasks: TaskRunner) -> list[tuple[Part, ...]]:
    """The old parts with candidates of prompts that have new candidates, in groups for reading tasks."""
    with database(job.options) as con:
        prompts = con.sql(_PROMPTS.format(candidates_in(job, range(len(job.part_groups)))))
        write_scratch(job, NEW_PROMPTS, prompts.to_arrow_table())
    rows = job.options.task_rows
    found = run_tasks(partial(_with_new_prompts, job), batched_by_rows(old, lambda part: part.rows, rows))
    parts = [part for parts in found for part in parts]
    return batched_by_rows(parts, lambda part: part.rows, rows) if parts else []


def _with_new_prompts(job: CurationJob, parts: Sequence[Part]) -> list[Part]:
    """Those of some old parts that have candidates of prompts with new candidates."""
    with database(job.options) as con:
        places = con.execute(
            f"SELECT DISTINCT s.__part FROM ({scan(parts, numbered=True)}) s "
            f"SEMI JOIN {new_prompts(job)} n ON s.prompt_id = n.prompt_id"
        ).fetchall()
    return [parts[place] for (place,) in sorted(places)]


def _sources(command: Command, job: CurationJob) -> list[Source]:
    """The shards of the candidates that were read, if their text is needed. Raises ConfigError if one changed."""
    if job.scores.has_text or not command.reads_text:
        return []
    with database(job.options) as con:
        sources = con.sql(f"SELECT DISTINCT source FROM {candidates_in(job, range(len(job.part_groups)))}")
        uris = {uri for (uri,) in sources.fetchall()}
    return list(find_sources(command.scores, uris).values())


def _prompts_again(job: CurationJob) -> pa.Array:
    content = Store(job.scratch).read(f"{_AGAIN}.parquet")
    return pq.read_table(io.BytesIO(content))["prompt_id"].combine_chunks()


def _replace(
    job: CurationJob, parts: Sequence[PartEntry], run_tasks: TaskRunner
) -> list[tuple[PartEntry, PartEntry]]:
    """Rewrite the parts with rows of prompts that were done again without these; returns each with its successor."""
    rewritten = run_tasks(partial(_without_rows, job), parts)
    return [(old, new) for old, new in zip(parts, rewritten, strict=True) if new is not None]


def _without_rows(job: CurationJob, part: PartEntry) -> PartEntry | None:
    """Write a part without the rows of prompts that were done again; None if it has none."""
    store, again = Store(job.options.output), _prompts_again(job)
    if part.path.endswith(".jsonl"):
        gone, lines = set(again.to_pylist()), read_content(store, part).splitlines(keepends=True)
        left = [line for line in lines if json.loads(line)["prompt_id"] not in gone]
        content, rows = b"".join(left), len(left)
    else:
        with Opened().open(f"{store.uri}/{part.path}") as stream:
            ids = pq.read_table(stream, columns=["prompt_id"])["prompt_id"]
        if not pc.any(pc.is_in(ids, again)).as_py():
            return None
        table = pq.read_table(io.BytesIO(read_content(store, part)))
        table = table.filter(pc.invert(pc.is_in(table["prompt_id"], again)))
        content, rows = encode(table, "parquet"), table.num_rows
    if rows == part.rows:
        return None
    return put(store, _successor(part.path, job.increment or 0), content, rows)


def _successor(path: str, increment: int) -> str:
    """The name of a part as an increment leaves it: part-00001-00000.parquet becomes part-00001-00000-00003.parquet."""
    folder, _, name = path.rpartition("/")
    stem, dot, kind = name.partition(".")
    origin = "-".join(stem.split("-")[:3])
    return f"{folder}/{origin}-{increment:05d}{dot}{kind}"


def _no_longer(job: CurationJob, listed: Iterable[str]) -> dict[str, None]:
    """Those of some prompts that were done again."""
    return dict.fromkeys(sorted(set(listed) & set(_prompts_again(job).to_pylist())))


def _log(growing: Growing) -> None:
    last = growing.increments[-1]
    counts = ", ".join(f"{count} {name}" for name, count in last.counts.items())
    logger.info(
        "%s: increment %d, %d units: %s",
        growing.store.uri,
        len(growing.increments),
        sum(map(len, last.units.values())),
        counts,
    )


def _publish(command: Command, growing: Growing) -> None:
    """Write the card and the manifest of all increments."""
    parts, done = growing.parts, numbers(growing.increments)
    rows: dict[str, int] = {}
    for part in parts:
        name = f"rows in {part.path.split('/')[1]}"
        rows[name] = rows.get(name, 0) + part.rows
    about = f"{command.about}\n\n{_about(done)}"
    details = {**command.details, "increments": done}
    finish(growing.store, Made(command.name, about, command.scores, command.options, parts, rows, details))


def _about(done: Sequence[Mapping[str, Any]]) -> str:
    """How the dataset grew, in Markdown."""
    columns = ("prompts done again", "rows replaced")
    table = markdown_table(
        ["increment", "finished", "units read", *columns],
        [
            [one["number"], one["finished_at"], one["units"], *(one["counts"][name] for name in columns)]
            for one in done[-_SHOWN:]
        ],
    )
    text = (
        "Rows are in the order of `prompt_id` within each part. The dataset grows with `--append`: a prompt that got "
        "candidates later was done again from all of them, and its earlier rows were replaced."
    )
    left = f" The last {_SHOWN} of {len(done)} increments:" if len(done) > _SHOWN else ""
    return f"{text}{left}\n\n{table}"
