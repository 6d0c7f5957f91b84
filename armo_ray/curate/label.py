"""`armo-ray label`: training labels for candidates, prompt by prompt, in the same steps as `armo-ray mine`."""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from armo_ray.curate import candidate_text
from armo_ray.curate.candidates import KEY, read_groups
from armo_ray.curate.increment import Command, Rows, append, columns_digest
from armo_ray.curate.job import CurationJob, in_pieces, whole_job
from armo_ray.curate.label_sql import (
    OUTPUT,
    Calibration,
    finish_piece,
    label_bucket,
    reading_of,
    reads_text_apart,
    write_piece,
)
from armo_ray.curate.options import LabelOptions
from armo_ray.curate.tasks import TaskRunner, engine, per_task, scratch_folder
from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import Expression, advice, name_of, parse, quote
from armo_ray.measures.calibration import find_temperature, standardization
from armo_ray.outputs.database import database
from armo_ray.outputs.dataset import Made, finish, new_output
from armo_ray.outputs.scores import Scores, columns_of, literal, open_scores, scan
from armo_ray.outputs.text import Source, find_sources

logger = logging.getLogger(__name__)

# HelpSteer's 0 to 4 as ArmoRM was trained on them: (x + 0.5) / 5
HELPSTEER = "5:-0.5"
_ABOUT = {
    "candidates": "A row per candidate: `labels` ({scale}), `probability` (softmax of the prompt's scores), "
    "`advantage` (score minus the prompt's mean, divided by its standard deviation) and `rank` in the prompt.",
    "pairs": "A row per pair of a prompt: the `probability` that chosen is better, by Bradley-Terry on the scores.",
    "sft": "The best responses of each prompt, starting with `rank` 1.",
}
_COLUMNS = f"prompt_id, row_id, {KEY}, role, score, rewards"


def run(options: LabelOptions) -> None:
    """Label complete outputs of one model. Raises ConfigError before any work, RuntimeError if it cannot go on."""
    check(options)
    scores = open_scores(options.scores, options.partition)
    labels = formulas(options, scores.reward_names)
    about = _ABOUT[options.shape].format(scale=options.scale)
    if options.append:
        _append(options, scores, labels, about)
        return
    with new_output(options.output, "label", options.engine) as store:
        select, moments, fitted = _measure(options, scores)
        calibration = Calibration(labels, moments, fitted["temperature"])
        sources = [] if scores.has_text or not options.text else list(find_sources(scores).values())
        with scratch_folder(options) as scratch, engine(options) as run_tasks:
            job = reading_of(whole_job(scores, per_task(options), scratch, select))
            job, _ = read_groups(job, run_tasks, range(len(job.part_groups)))
            rows = _label(calibration, job, run_tasks, sources)
        details = {"calibration": {**fitted, "moments": moments, "formulas": labels}}
        finish(store, Made("label", about, scores, options, rows.parts, rows.counts, details))
    logger.info("%s: %s", options.output, ", ".join(f"{count} {name}" for name, count in rows.counts.items()))


def _append(options: LabelOptions, scores: Scores, labels: dict[str, str], about: str) -> None:
    """Label the units that the dataset has not read, in place of the older rows of their prompts."""
    select, moments, fitted = _measure(options, scores)
    append(
        Command(
            name="label",
            scores=scores,
            options=options,
            select=select,
            state={"the type of a column": columns_digest(select, scores, options)},
            about=about,
            reads_text=options.text,
            compares=False,
            begin=reading_of,
            make=partial(_label, Calibration(labels, moments, fitted["temperature"])),
            publish=lambda _: None,
            details={"calibration": {**fitted, "moments": moments, "formulas": labels}},
        )
    )


def _measure(options: LabelOptions, scores: Scores) -> tuple[str, list[Any], Mapping[str, Any]]:
    """SQL of the columns that labels use, mean and deviation of every group, and the temperature with its origin."""
    with database(options) as con:
        relation = scan(scores.parts)
        types = columns_of(con, scores)
        per = [parse(text, types, None) for text in options.per]
        select = _select(options, types, [parse(text, types) for text in options.where], per)
        moments = []
        if options.scale == "standardized" and options.shape == "candidates":
            moments = standardization(con, relation, scores.reward_names, per)
        if options.temperature is None and options.shape != "sft":
            return select, moments, find_temperature(con, relation)
    return select, moments, {"temperature": options.temperature or 1.0}


def check(options: LabelOptions) -> None:
    """Raises ConfigError if options contradict each other."""
    if options.scale != "raw" and options.shape != "candidates":
        raise ConfigError(f"--scale {options.scale} works only with --shape candidates")
    if options.per and options.scale != "standardized":
        raise ConfigError("--per works only with --scale standardized")
    if options.rescale and options.scale != "original":
        raise ConfigError("--rescale works only with --scale original")
    if options.keep and options.shape == "pairs":
        raise ConfigError("--keep does not work with --shape pairs: its columns are of one candidate")
    if options.append and options.scale == "standardized":
        raise ConfigError(
            "--append does not work with --scale standardized: mean and deviation are those of all rows. Leave out one "
            "of them"
        )
    if options.append and options.shape != "sft" and options.temperature is None:
        raise ConfigError(
            "--append needs --temperature: a fitted one depends on all rows. Without --append, label writes the one "
            "that it fits to _SUCCESS, under calibration"
        )


def formulas(options: LabelOptions, names: tuple[str, ...]) -> dict[str, str]:
    """SQL of every label by its name. On the original scale, only rewards whose scale is known have a label."""
    if options.scale == "raw":
        return {name: f"rewards.{quote(name)}" for name in names}
    if options.scale == "standardized":
        values = {"score": "score"} | {name: f"rewards.{quote(name)}" for name in names}
        return {
            name: f"({value}::DOUBLE - moments[{literal(name)}][1]) / moments[{literal(name)}][2]"
            for name, value in values.items()
        }
    scales = dict.fromkeys((n for n in names if n.startswith("helpsteer_")), HELPSTEER) | dict(
        options.rescale
    )
    rescaled = {}
    for name, text in scales.items():
        if name not in names:
            raise ConfigError(f"--rescale {name}: this model has no such reward; {advice(name, names)}")
        rescaled[name] = _rescaled(name, text)
    if not rescaled:
        raise ConfigError(
            "--scale original: the scales of this model's rewards are not known: give --rescale"
        )
    return rescaled


def _rescaled(name: str, text: str) -> str:
    try:
        factor, offset = (float(number) for number in text.split(":"))
    except ValueError:
        factor = offset = math.nan
    if not (math.isfinite(factor) and math.isfinite(offset)):
        raise ConfigError(f"--rescale {name}={text}: expected FACTOR:OFFSET, such as {HELPSTEER}")
    return f"rewards.{quote(name)}::DOUBLE * {factor!r}::DOUBLE + {offset!r}::DOUBLE"


def _select(
    options: LabelOptions, types: Mapping[str, str], where: list[Expression], per: list[Expression]
) -> str:
    """SQL of the columns of a candidate that labels use."""
    if any(condition.quantiles for condition in where):
        raise ConfigError(
            "--where: quantiles are not supported here; filter with armo-ray filter first, and label its output"
        )
    for name in options.keep:
        if name_of(name) not in types:
            raise ConfigError(f"--keep {name}: no such column in all of the scores; {advice(name, types)}")
        if name.lower() in OUTPUT[options.shape]:  # column names in DuckDB ignore case
            raise ConfigError(f"--keep {name}: --shape {options.shape} already writes a column of that name")
    fields = ", ".join(f"{quote(name)}: {quote(name)}" for name in dict.fromkeys(options.keep))
    kept = f", {{{fields}}} AS kept" if fields else ""
    passes = " AND ".join(condition.sql for condition in where) or "true"
    key = ", ".join(f"({e.sql})::VARCHAR" for e in per)
    return f"{_COLUMNS}{kept}, score AS value, coalesce({passes}, false) AS can_be, [{key}]::VARCHAR[] AS key"


def _label(
    calibration: Calibration, job: CurationJob, run_tasks: TaskRunner, sources: Sequence[Source]
) -> Rows:
    """Make and write the rows of the candidates that were read."""
    if reads_text_apart(job):
        done = run_tasks(partial(label_bucket, job, calibration), range(job.num_buckets))
        texts = candidate_text.read_needed(job, run_tasks, sources)
        sides = 2 if job.options.shape == "pairs" else 1
        job = in_pieces(job, texts.texts, sides * sum(rows for _, rows in done))
        written = run_tasks(partial(write_piece, job, calibration, texts), range(job.num_pieces))
    else:
        job = in_pieces(job, job.candidates, job.candidates.rows)
        done = run_tasks(partial(finish_piece, job, calibration), range(job.num_pieces))
        written = [parts for _, parts in done]
    parts = [part for of_piece in written for part in of_piece]
    counts = {name: sum(counted[name] for counted, _ in done) for name in done[0][0]}
    return Rows(parts, counts | {"rows": sum(part.rows for part in parts)}, num_pieces=job.num_pieces)
