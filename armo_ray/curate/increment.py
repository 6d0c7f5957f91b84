"""`mine --append` and `label --append`: rows of what was scored since the last increment.

A prompt that gets candidates later is done again from all its candidates, old and new, and its old rows are replaced.
So the increments together hold the rows of one run over everything.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from armo_ray.curate import known_digests
from armo_ray.curate.candidates import read_groups
from armo_ray.curate.earlier import prompts_in, read_earlier, take_out
from armo_ray.curate.job import CurationJob, batched_by_rows
from armo_ray.curate.scratch_files import NOTHING, read_column
from armo_ray.curate.tasks import TaskRunner, engine, per_task, scratch_folder
from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import name_of
from armo_ray.formatting.tables import markdown_table
from armo_ray.outputs.database import database
from armo_ray.outputs.dataset import Made, finish
from armo_ray.outputs.increments import Growing, Increment, Making, growing_output, numbers
from armo_ray.outputs.scores import Part, Scores, columns_of
from armo_ray.outputs.text import Source, find_sources
from armo_ray.storage.json_files import digest_of, unit_of
from armo_ray.storage.records import PartEntry

logger = logging.getLogger(__name__)

_RUNNING = {"scores", "output", "append", "date", "memory", "threads", "spill", "engine", "task_rows"}
_SHOWN = 10  # increments in the card


@dataclass(frozen=True)
class Rows:
    """What a command made of the candidates of a job."""

    parts: Sequence[PartEntry]
    counts: Mapping[str, Any]
    contaminated: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    duplicates: frozenset[str] = frozenset()  # near-duplicate prompts, those of earlier increments included
    num_pieces: int = 0  # in the names of the parts


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
    compares: bool  # whether prompts are compared with those of earlier increments
    begin: Callable[[CurationJob], CurationJob]
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
            logger.info("%s: no new scores since its last increment; left unchanged", options.output)
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
    earlier = growing.units
    now = {output: {unit: _digest(parts) for unit, parts in of.items()} for output, of in units.items()}
    for output, used in earlier.items():
        if output not in now:
            raise ConfigError(f"output {growing.store.uri} has rows from {output}: give these scores too")
        gone = sorted(unit for unit, digest in used.items() if now[output].get(unit) != digest)
        if gone:
            raise ConfigError(
                f"output {growing.store.uri} has rows from {len(gone)} units that {output} no longer holds or holds "
                f"with other scores, such as {gone[0]}: make the dataset anew, in another output"
            )
    new = {
        output: {u: d for u, d in of.items() if u not in earlier.get(output, {})}
        for output, of in now.items()
    }
    return {output: of for output, of in new.items() if of}


def _increment(
    command: Command,
    growing: Growing,
    units: Mapping[str, Mapping[str, list[Part]]],
    new: Mapping[str, Mapping[str, str]],
) -> Increment:
    """Write the parts of an increment."""
    options = command.options
    parts: dict[bool, list[Part]] = {True: [], False: []}
    for output, of in units.items():
        for unit, listed in of.items():
            parts[unit in new.get(output, {})] += listed
    groups = tuple(batched_by_rows(parts[True], lambda part: part.rows, options.task_rows))
    rows = sum(part.rows for part in parts[True])
    with scratch_folder(options) as scratch, engine(options) as run_tasks:
        job = CurationJob(
            command.scores, per_task(options), scratch, command.select, groups, rows, growing.number
        )
        job = command.begin(job)
        job, without_value, prompts = _read(job, parts[False], run_tasks)
        again = prompts["prompt_id"].to_pylist()
        if command.compares:
            job = known_digests.with_known(job, growing, prompts)
        made = command.make(job, run_tasks, _sources(command, job))
        gone, returned = known_digests.update(job, made.duplicates) if command.compares else ([], [])
        taken = take_out(job, {*again, *gone}, growing.parts, run_tasks)
        more = _make_returned(
            command, replace(job, first_part=made.num_pieces), returned, parts[False], run_tasks
        )
    counts = {
        "candidates without a value": without_value,
        **made.counts,
        **{name: made.counts[name] + count for name, count in more.counts.items()},
        "prompts done again": len(again) + len(returned),
        "rows replaced": sum(old.rows - (left.rows if left else 0) for old, left in taken),
    }
    cleared = dict.fromkeys(sorted(growing.contaminated.keys() & set(again)))
    return Increment(
        units=new,
        parts=(*made.parts, *more.parts, *(left for _, left in taken if left)),
        replaced=tuple(old.path for old, _ in taken),
        counts=counts,
        contaminated={**cleared, **made.contaminated},
        date=options.date,
    )


def _read(job: CurationJob, old: Sequence[Part], run_tasks: TaskRunner) -> tuple[CurationJob, int, pa.Table]:
    """Read the new candidates, and the old ones of their prompts.

    Returns the job with the groups that were read, the number of new candidates without a value, and the prompts that
    have old candidates.
    """
    job, without_value = read_groups(job, run_tasks, range(len(job.part_groups)))
    new = job.candidates.names
    if old:
        job = read_earlier(job, prompts_in(job, new), old, run_tasks)
    earlier = job.candidates.names[len(new) :]
    if not earlier:
        return job, without_value, pa.table({"prompt_id": pa.array([], pa.string())})
    again = prompts_in(job, earlier)
    logger.info("%d prompts have earlier candidates, too", again.num_rows)
    return job, without_value, again


def _make_returned(
    command: Command, job: CurationJob, prompts: Sequence[str], old: Sequence[Part], run_tasks: TaskRunner
) -> Rows:
    """Make and write the rows of earlier prompts that are no longer near-duplicates of another."""
    if not prompts:
        return Rows((), {})
    job = replace(
        job,
        scratch=f"{job.scratch}/returned",
        part_groups=(),
        rows=0,
        candidates=NOTHING,
        screened=True,
    )
    job = command.begin(job)
    job = read_earlier(job, pa.table({"prompt_id": pa.array(prompts, pa.string())}), old, run_tasks)
    made = command.make(job, run_tasks, _sources(command, job))
    return Rows(
        made.parts, {name: count for name, count in made.counts.items() if name.startswith("pairs in")}
    )


def _sources(command: Command, job: CurationJob) -> list[Source]:
    """The shards of the candidates that were read, if their text is needed. Raises ConfigError if one changed."""
    if job.scores.has_text or not command.reads_text:
        return []
    sources = read_column(job.scratch, job.candidates.names, "source")
    uris = {uri for batch in sources for uri in batch["source"].unique().to_pylist()}
    return list(find_sources(command.scores, uris).values())


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
