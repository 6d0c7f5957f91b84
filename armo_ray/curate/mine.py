"""`armo-ray mine`: preference pairs from the candidates of each prompt, across shards.

Five steps, each of independent tasks that write sorted files for the next step: read candidates; select the pairs
of every bucket of prompts; read the text of the selected candidates; find prompts to leave out; write rows. Every
task uses DuckDB; --engine only decides where tasks execute, so both engines give the same rows.
"""

import json
import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from armo_ray.curate import candidate_text, excluded_datasets, excluded_prompts, strategies, trainer_rows
from armo_ray.curate.candidates import CurationJob, batched_by_rows, read_candidates, select_candidates
from armo_ray.curate.options import MineOptions
from armo_ray.curate.tasks import TaskRunner, engine, per_task, scratch_folder
from armo_ray.outputs.dataset import Made, finish, new_output
from armo_ray.outputs.scores import open_scores
from armo_ray.outputs.text import find_sources
from armo_ray.storage.records import PartEntry
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)

CONTAMINATED = "contaminated.jsonl"
_ABOUT = """Preference pairs by the strategy {strategy}: `chosen` has a larger `{rank_by}` than `rejected`.
Rows are ordered by `prompt_id`, then by margin, the largest first."""

_DECONTAMINATED = """`--decontaminate` left out every prompt that has {ngram} words in a row, or a whole shorter text,
in common with a benchmark, also where these are only a template or a long quotation. `{file}` lists the words of each
prompt."""

_COMPARED = """Prompts were compared by words. In Chinese, Japanese, Thai, Lao, Khmer, Burmese and other scripts without
spaces they were compared by characters: 2 (Chinese and Japanese) or 3 (others) count as one word of an n-gram."""


def run(options: MineOptions) -> None:
    """Mine pairs into a new dataset. Raises ConfigError before any work, RuntimeError if it cannot go on."""
    scores = open_scores(options.scores, options.partition)
    select = select_candidates(scores, options)
    excluded = excluded_datasets.find_parts(options.exclude)
    with new_output(options.output, "mine", options.engine) as store:
        sources = [] if scores.has_text else list(find_sources(scores).values())
        benchmark = excluded_prompts.benchmark_ngrams(options.decontaminate, options.ngram)
        part_groups = tuple(batched_by_rows(scores.parts, lambda part: part.rows, options.task_rows))
        shard_groups = batched_by_rows(sources, lambda source: source.scored, options.task_rows)
        with scratch_folder(options) as scratch, engine(options) as run_tasks:
            job = CurationJob(scores, per_task(options), scratch, select, part_groups)
            if excluded:
                excluded_datasets.write_excluded(job, excluded)
            parts, counts = _mine(job, run_tasks, shard_groups, benchmark)
        about = _ABOUT.format(rank_by=options.rank_by, strategy=options.strategy)
        if benchmark:
            about += f"\n\n{_DECONTAMINATED.format(ngram=options.ngram, file=CONTAMINATED)}"
        if benchmark or options.near_duplicates is not None:
            about += f"\n\n{_COMPARED}"
        finish(store, Made("mine", about, scores, options, parts, counts))
    logger.info("%s: %s", options.output, ", ".join(f"{count} {name}" for name, count in counts.items()))


def _mine(
    job: CurationJob, run_tasks: TaskRunner, shard_groups: list[Any], benchmark: dict[str, str]
) -> tuple[list[PartEntry], dict[str, Any]]:
    options, buckets = job.options, range(job.num_buckets)
    groups = range(len(job.part_groups))
    without_value = sum(run_tasks(partial(read_candidates, job), groups))
    logger.info("read %d candidates", job.scores.rows)
    slope = 0.0
    if options.length_control == "residual":
        sums = run_tasks(partial(strategies.measure_length, job), buckets)
        sum_of_squares = math.fsum(squares for _, squares in sums)
        slope = math.fsum(products for products, _ in sums) / sum_of_squares if sum_of_squares else 0.0
        logger.info("each additional response token adds %g to value", slope)
    counts: dict[str, Any] = _sum(run_tasks(partial(strategies.mine_bucket, job, slope), buckets))
    logger.info("selected %d pairs", counts["pairs taken"])
    if job.scores.has_text:
        files = run_tasks(partial(candidate_text.text_of_parts, job), groups)
    else:
        files = run_tasks(partial(candidate_text.text_of_sources, job), list(enumerate(shard_groups)))
    texts = [name for names in files for name in names]
    removed, removed_counts = _find_removed(job, run_tasks, texts, benchmark)
    written = run_tasks(partial(trainer_rows.assemble_bucket, job, texts, removed), buckets)
    counts |= {"candidates without a value": without_value, **removed_counts, **_sum([c for _, c in written])}
    if slope:
        counts["value added by a token"] = slope
    return [part for parts, _ in written for part in parts], counts


def _find_removed(
    job: CurationJob, run_tasks: TaskRunner, texts: list[str], benchmark: dict[str, str]
) -> tuple[frozenset[str], dict[str, int]]:
    """Ids of the prompts to leave out, and their number by reason. Writes the contaminated ones to a file."""
    options = job.options
    if not benchmark and options.near_duplicates is None:
        return frozenset(), {}
    task = partial(excluded_prompts.screen_bucket, job, texts, benchmark)
    contaminated = [entry for entries in run_tasks(task, range(job.num_buckets)) for entry in entries]
    counts, removed = {}, {entry.prompt_id for entry in contaminated}
    if benchmark:
        counts["prompts of a benchmark"] = len(contaminated)
        lines = "".join(json.dumps(entry._asdict(), ensure_ascii=False) + "\n" for entry in contaminated)
        Store(options.output).write(CONTAMINATED, lines.encode())
    if options.near_duplicates is not None:
        duplicates = excluded_prompts.near_duplicates(job)
        counts["near-duplicate prompts"] = len(duplicates)
        removed |= set(duplicates)
    return frozenset(removed), counts


def _sum(counted: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: sum(counts[name] for counts in counted) for name in counted[0]}
