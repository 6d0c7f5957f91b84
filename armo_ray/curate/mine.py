"""`armo-ray mine`: preference pairs from the candidates of each prompt, across shards.

Five steps, each of independent tasks that write sorted files for the next step: read candidates; select the pairs
of every bucket of prompts; read the text of the selected candidates; find prompts to leave out; write rows. Every
task uses DuckDB; --engine only decides where tasks execute, so both engines give the same rows.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from armo_ray.curate import candidate_text, excluded_datasets, excluded_prompts, strategies, trainer_rows
from armo_ray.curate.candidate_text import Selected
from armo_ray.curate.candidates import read_groups, select_candidates
from armo_ray.curate.increment import Command, Rows, append, columns_digest
from armo_ray.curate.job import CurationJob, in_pieces, whole_job
from armo_ray.curate.options import MineOptions
from armo_ray.curate.tasks import TaskRunner, engine, per_task, scratch_folder
from armo_ray.errors import ConfigError
from armo_ray.outputs.dataset import Made, finish, new_output
from armo_ray.outputs.increments import Growing
from armo_ray.outputs.scores import Scores, open_scores
from armo_ray.outputs.text import Source, find_sources
from armo_ray.storage.json_files import digest_of
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)

CONTAMINATED = "contaminated.jsonl"
_ABOUT = "Preference pairs by the strategy {strategy}: `chosen` has a larger `{rank_by}` than `rejected`."
_ORDERED = "Rows are ordered by `prompt_id`, then by margin, the largest first."

_DECONTAMINATED = """`--decontaminate` left out every prompt that has {ngram} words in a row, or a whole shorter text,
in common with a benchmark, also where these are only a template or a long quotation. `{file}` lists the words of each
prompt."""

_COMPARED = """Prompts were compared by words. In Chinese, Japanese, Thai, Lao, Khmer, Burmese and other scripts without
spaces they were compared by characters: 2 (Chinese and Japanese) or 3 (others) count as one word of an n-gram."""


def run(options: MineOptions) -> None:
    """Mine pairs into a new dataset. Raises ConfigError before any work, RuntimeError if it cannot go on."""
    check(options)
    scores = open_scores(options.scores, options.partition)
    select = select_candidates(scores, options)
    excluded = excluded_datasets.find_parts(options.exclude)
    if options.append:
        _append(options, scores, select, excluded)
        return
    with new_output(options.output, "mine", options.engine) as store:
        sources = [] if scores.has_text else list(find_sources(scores).values())
        benchmark = excluded_prompts.benchmark_ngrams(options.decontaminate, options.ngram)
        with scratch_folder(options) as scratch, engine(options) as run_tasks:
            job = _begin(excluded, whole_job(scores, per_task(options), scratch, select))
            job, without_value = read_groups(job, run_tasks, range(len(job.part_groups)))
            rows = _mine(benchmark, job, run_tasks, sources)
        if benchmark:
            _list_contaminated(store, rows.contaminated)
        counts = {"candidates without a value": without_value, **rows.counts}
        finish(store, Made("mine", _about(options, ordered=True), scores, options, rows.parts, counts))
    logger.info("%s: %s", options.output, ", ".join(f"{count} {name}" for name, count in counts.items()))
    if not any(part.rows for part in rows.parts):
        logger.warning("%s: there are no pairs; the counts say what left them out", options.output)


def check(options: MineOptions) -> None:
    """Raises ConfigError if options contradict each other."""
    if options.append and options.length_control != "none":
        raise ConfigError(
            f"--append does not work with --length-control {options.length_control}: the effect of length is that of "
            f"all prompts. Leave out --append, or rank by an expression of num_response_tokens"
        )


def exclusions(options: MineOptions, benchmark: dict[str, str] | None = None) -> dict[str, str]:
    """Digests of the files and datasets that decide which prompts are left out, by what they are.

    Raises ConfigError if one cannot be read.
    """
    if benchmark is None:
        benchmark = excluded_prompts.benchmark_ngrams(options.decontaminate, options.ngram)
    return {
        "a file of --decontaminate": digest_of(json.dumps(benchmark, sort_keys=True).encode()),
        "a dataset of --exclude": excluded_datasets.digest(options.exclude),
    }


def _append(options: MineOptions, scores: Scores, select: str, excluded: list[str]) -> None:
    """Mine pairs of the units that the dataset has not read, in place of the older pairs of their prompts."""
    benchmark = excluded_prompts.benchmark_ngrams(options.decontaminate, options.ngram)
    state = {
        "the type of a column": columns_digest(select, scores, options),
        **exclusions(options, benchmark),
    }

    def publish(growing: Growing) -> None:
        if benchmark:
            _list_contaminated(growing.store, growing.contaminated)

    append(
        Command(
            name="mine",
            scores=scores,
            options=options,
            select=select,
            state=state,
            about=_about(options, ordered=False),
            reads_text=True,
            compares=options.near_duplicates is not None,
            begin=partial(_begin, excluded),
            make=partial(_mine, benchmark),
            publish=publish,
        )
    )


def _about(options: MineOptions, ordered: bool) -> str:
    about = _ABOUT.format(rank_by=options.rank_by, strategy=options.strategy)
    if ordered:
        about += f"\n{_ORDERED}"
    if options.decontaminate:
        about += f"\n\n{_DECONTAMINATED.format(ngram=options.ngram, file=CONTAMINATED)}"
    if options.decontaminate or options.near_duplicates is not None:
        about += f"\n\n{_COMPARED}"
    return about


def _begin(excluded: list[str], job: CurationJob) -> CurationJob:
    """The job that reads of most candidates only what decides the pairs, with the prompts to exclude written for it."""
    if excluded:
        excluded_datasets.write_excluded(job, excluded)
    late, skipped = strategies.late_columns(job.options), strategies.undecisive_columns(job.options)
    return replace(job, late=late, skipped=skipped)


def _mine(
    benchmark: dict[str, str], job: CurationJob, run_tasks: TaskRunner, sources: Sequence[Source]
) -> Rows:
    """Make and write the pairs of the candidates that were read."""
    options, buckets = job.options, range(job.num_buckets)
    logger.info("read %d candidates", job.rows)
    slope = 0.0
    if options.length_control == "residual":
        sums = run_tasks(partial(strategies.measure_length, job), buckets)
        sum_of_squares = math.fsum(squares for _, squares in sums)
        slope = math.fsum(products for products, _ in sums) / sum_of_squares if sum_of_squares else 0.0
        logger.info("each additional response token adds %g to value", slope)
    counts: dict[str, Any] = _sum(run_tasks(partial(strategies.mine_bucket, job, slope), buckets))
    logger.info("selected %d pairs", counts["pairs taken"])
    texts = candidate_text.read_needed(job, run_tasks, sources)
    removed = _find_removed(job, run_tasks, texts, benchmark)
    job = in_pieces(job, texts.texts, _uses_of_text(options, counts))
    task = partial(trainer_rows.assemble_piece, job, texts, removed.prompts)
    written = run_tasks(task, range(job.num_pieces))
    counts |= {**removed.counts, **_sum([c for _, c in written])}
    if slope:
        counts["value added by a token"] = slope
    parts = [part for parts, _ in written for part in parts]
    return Rows(parts, counts, removed.contaminated, removed.duplicates, job.num_pieces)


def _uses_of_text(options: MineOptions, counts: Mapping[str, int]) -> int:
    """How often the pairs have the text of a candidate."""
    dropped = sum(number for name, number in counts.items() if name.startswith("pairs dropped"))
    pairs = counts["pairs taken"] - dropped
    listed = 0 if options.layout == "trl" else counts["candidates"] // max(counts["prompts"], 1)
    return pairs * (2 + listed)


class _Removed(NamedTuple):
    """The prompts to leave out."""

    prompts: frozenset[str]  # their ids
    counts: dict[str, int]  # of prompts, by reason
    contaminated: dict[str, dict[str, str]]  # the file and the n-gram that a prompt shares with it
    duplicates: frozenset[str]  # those near a prompt with a smaller id, earlier prompts included


def _find_removed(
    job: CurationJob, run_tasks: TaskRunner, texts: Selected, benchmark: dict[str, str]
) -> _Removed:
    options = job.options
    if job.screened or (not benchmark and options.near_duplicates is None):
        return _Removed(frozenset(), {}, {}, frozenset())
    task = partial(excluded_prompts.screen_bucket, job, texts.texts.names, benchmark)
    contaminated = [entry for entries in run_tasks(task, range(job.num_buckets)) for entry in entries]
    counts, duplicates = {}, frozenset[str]()
    if benchmark:
        counts["prompts of a benchmark"] = len(contaminated)
    if options.near_duplicates is not None:
        duplicates = frozenset(excluded_prompts.near_duplicates(job))
        name = "near-duplicate prompts" if job.increment is None else "near-duplicate prompts in all"
        counts[name] = len(duplicates)
    shared = {entry.prompt_id: {"file": entry.file, "ngram": entry.ngram} for entry in contaminated}
    return _Removed(duplicates.union(shared), counts, shared, duplicates)


def _list_contaminated(store: Store, contaminated: Mapping[str, Mapping[str, str]]) -> None:
    """Write the list of contaminated prompts, in the order of their ids."""
    entries = ({"prompt_id": prompt, **shared} for prompt, shared in contaminated.items())
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    store.write(CONTAMINATED, lines.encode())


def _sum(counted: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: sum(counts[name] for counts in counted) for name in counted[0]}
