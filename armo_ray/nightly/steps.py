"""Running the steps of a night: each is done once for the same options and inputs."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from armo_ray.errors import ConfigError
from armo_ray.nightly.night import DATASETS, Night, Step, in_section
from armo_ray.nightly.record import Record, exclusions_of, inputs_of, made_of, made_parts, origin_of
from armo_ray.outputs.dataset import parts_of
from armo_ray.outputs.partitions import Partitions, parse_partitions, sources_in_partitions
from armo_ray.score.config import ScoreConfig
from armo_ray.storage.json_files import digest_of
from armo_ray.storage.parts import REJECTS, SCORES
from armo_ray.storage.store import Store

if TYPE_CHECKING:
    from armo_ray.storage.records import PartEntry, Totals

logger = logging.getLogger(__name__)

# skipped: it was done before; empty: there is no candidate to read
COMPLETE, SKIPPED, EMPTY, FAILED = "complete", "skipped", "empty", "failed"


class Done(NamedTuple):
    """How a step ended; `rows` that it made in this night, None of a step that makes none."""

    status: str
    seconds: float = 0.0
    rows: int | None = None
    totals: tuple["Totals", ...] = ()  # of this night's input, by output of score
    made: Any = None  # what tells what this night made from anything else, as JSON


def check_outputs(night: Night, record: Record) -> None:
    """Raises ConfigError if a step would find a dataset in its output that this night did not make, before any work."""
    for step in night.steps:
        if step.name == "label":
            from armo_ray.curate.label import check

            with in_section(step.name):
                check(*step.options)
        if step.name in DATASETS and not step.appends and record.value(step.name, "origin") is None:
            (output,) = step.writes
            if parts_of(Store(output)) is not None:
                raise ConfigError(
                    f"[{step.name}] output {output} holds a dataset that this night did not make, by {record.place}: "
                    f"put {{date}} in its name, or choose another"
                )


def check_inputs(night: Night) -> None:
    """Raises ConfigError if what steps read besides this night's own outputs is not there, before any work."""
    from armo_ray.storage import commits

    own = {place.rstrip("/") for step in night.steps for place in step.writes}
    for step in night.steps:
        # a report also reads outputs that are not complete
        find = commits.find_run if step.name == "report" else parts_of
        for place in step.reads:
            if place.rstrip("/") not in own and find(Store(place)) is None:
                raise ConfigError(f"[{step.name}] {place}: no output there, or none that is complete")
        if step.name == "mine":
            from armo_ray.curate.excluded_datasets import find_parts
            from armo_ray.curate.excluded_prompts import find_files

            with in_section(step.name):
                find_parts(step.options[0].exclude)
                find_files(step.options[0].decontaminate)


def run_steps(night: Night, record: Record, done: dict[str, Done]) -> None:
    """Run the steps that are not done, in their order, and enter each in `done`.

    Raises ConfigError if nothing was done, RuntimeError if a step cannot go on after others were.
    """
    for step in night.steps:
        began = time.monotonic()
        try:
            result = _RUN[step.name](night, step, record, done)
        except BaseException as error:
            done[step.name] = Done(FAILED, time.monotonic() - began)
            worked = any(other.status == COMPLETE for other in done.values())
            if isinstance(error, ConfigError):
                kind = RuntimeError if worked else ConfigError
                raise kind(f"[{step.name}] {error}") from error
            raise
        done[step.name] = result._replace(seconds=time.monotonic() - began)
        what = "is done, and skipped" if result.status == SKIPPED else result.status
        what = "is skipped: there is no candidate to read" if result.status == EMPTY else what
        rows = "" if result.rows is None else f" ({result.rows} rows)"
        logger.info("night %s: %s %s%s", night.date, step.name, what, rows)


def _score(night: Night, step: Step, *_: Any) -> Done:
    """Score what is not committed. Joins Ray only if something is left, and leaves it before the next step."""
    from armo_ray.score import trial
    from armo_ray.score.job import prepare_all

    prepared = prepare_all(step.options, check=trial.check)
    known, status = [], SKIPPED
    for (job, spans), config in zip(prepared, step.options, strict=True):
        if not _is_committed(job, spans, config):
            from armo_ray.score import pipeline

            pipeline.run(job, spans, config)
            status = COMPLETE
        uris = {span.shard.uri for span in spans}
        known.append(_committed(Store(job.output), uris, parse_partitions(night.partition)))
    totals, made = zip(*known, strict=True)
    return Done(status, rows=sum(one.scored for one in totals), totals=totals, made=made)


def _is_committed(job: Any, spans: Any, config: ScoreConfig) -> bool:
    from armo_ray.storage import commits, resume

    store = Store(job.output)
    standing = resume.standing(store, spans, job.fingerprint, config.redo, config.forget)
    return not standing.left and not standing.dropped and commits.find_manifest(store) is not None


def _committed(store: Store, sources: set[str], partitions: Partitions) -> tuple["Totals", str]:
    """The totals of the shards of an input, or of those in the night's partition, and a digest of all their parts."""
    from armo_ray.storage import commits

    log = commits.read_log(store)
    records = sorted(log.records(sources), key=lambda record: (record.source, record.unit))
    parts = [[part.path, part.digest or part.bytes] for record in records for part in record.parts]
    if partitions:
        sources = sources_in_partitions(records, partitions)
    return log.totals(sources=sources), digest_of(json.dumps([store.uri, parts]).encode())


def _make(night: Night, step: Step, record: Record, done: dict[str, Done]) -> Done:
    """Make or extend a dataset, unless it is there and was made of the same."""
    (output,), (options,) = step.writes, step.options
    before, inputs = parts_of(Store(output)), inputs_of(step, _not_made(night, done))
    origin, exclusions = (None, None) if step.appends else (origin_of(step, inputs), exclusions_of(step))
    if before is not None and not step.appends:
        # a night of an earlier version has no exclusions in its record
        same_exclusions = record.value(step.name, "exclusions") in (None, exclusions)
        if origin is None or origin != record.value(step.name, "origin") or not same_exclusions:
            raise ConfigError(
                f"output {output} was made with other options, or of scores, files or datasets that have changed "
                f"since: delete it to make it again"
            )
        return Done(SKIPPED, rows=_rows(night, step), made=made_of(night, step))
    if night.step("score") and _have_no_candidate(inputs.values()):
        return Done(EMPTY, rows=0)
    if not step.appends:
        record.write(step.name, origin=origin, exclusions=exclusions)
    import_module(f"armo_ray.curate.{step.name}").run(options)
    status = SKIPPED if before is not None and parts_of(Store(output)) == before else COMPLETE
    rows = _rows(night, step)
    made = [output, rows] if step.name == "filter" and step.appends else made_of(night, step)
    return Done(status, rows=rows, made=made)


def _not_made(night: Night, done: dict[str, Done]) -> set[str]:
    """The outputs of steps that made none."""
    empty = [step for step in night.steps if step.name in done and done[step.name].status == EMPTY]
    return {place.rstrip("/") for step in empty for place in step.writes}


def _have_no_candidate(inputs: Iterable["Sequence[PartEntry] | None"]) -> bool:
    return all(parts is not None and not any(part.is_in(SCORES) for part in parts) for parts in inputs)


def _rows(night: Night, step: Step) -> int:
    """The rows of a dataset that this night made."""
    if step.name == "filter" and step.appends:
        from armo_ray.curate.derived_output import MADE_ON
        from armo_ray.storage import commits

        return commits.read_log(Store(step.writes[0])).scored_with(MADE_ON, night.date)
    return sum(part.rows for part in made_parts(night, step) if not part.is_in(REJECTS))


def _report(night: Night, step: Step, record: Record, done: dict[str, Done]) -> Done:
    """Write the report. Drift is for the gate to judge."""
    from armo_ray.report.command import run

    (options,), place = step.options, report_place(step)
    inputs = inputs_of(step, _not_made(night, done))
    own = [parts for output, parts in inputs.items() if output in options.scores]
    if night.step("score") and options.partition and _have_no_candidate(own):  # rejects are in no partition
        return Done(EMPTY)
    origin = origin_of(step, inputs)
    is_there = Store(place[0]).read_json(place[1].removesuffix(".html") + ".json") is not None
    if origin is not None and origin == record.value(step.name, "origin") and is_there:
        return Done(SKIPPED)
    run(options)
    record.write(step.name, origin=origin)
    return Done(COMPLETE)


def report_place(step: Step) -> tuple[str, str]:
    """The directory of the report, and the name of its page."""
    from armo_ray.report.command import place_of

    (options,) = step.options
    return place_of(options)


_RUN: dict[str, Callable[[Night, Step, Record, dict[str, Done]], Done]] = {
    "score": _score,
    "report": _report,
    **dict.fromkeys(DATASETS, _make),
}
