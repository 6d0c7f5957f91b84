"""`armo-ray mine`: preference pairs of the candidates of each prompt, across shards.

Five steps, each of independent tasks that leave sorted files for the next: read candidates; take the pairs of
every bucket of prompts; read the text of what was taken; screen prompts; write rows. DuckDB does the work of a
task; the engine only says where tasks run, so both give the same rows.
"""

import json
import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from armo_ray.curate import candidate_text, excluded_prompts, pair_sql, trainer_rows
from armo_ray.curate.candidates import Plan, in_runs, read_candidates, select_candidates
from armo_ray.curate.options import MineOptions
from armo_ray.curate.tasks import Run, engine, per_task, work_folder
from armo_ray.outputs.dataset import Made, finish, new_output
from armo_ray.outputs.scores import open_scores
from armo_ray.outputs.text import find_sources
from armo_ray.storage.records import PartEntry
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)

CONTAMINATED = "contaminated.jsonl"
_ABOUT = """Preference pairs: `chosen` has a larger value of `{rank_by}` than `rejected`, by the strategy {strategy}.
Rows are in the order of `prompt_id`, then of falling margin."""

_COMPARED = """Prompts were compared by words; in Chinese, Japanese, Thai, Lao, Khmer, Burmese and other scripts without
spaces by characters, of which 2 (Chinese and Japanese) or 3 (others) are as long as a word of an n-gram."""


def run(options: MineOptions) -> None:
    """Mine pairs into a new dataset. Raises ConfigError before any work, RuntimeError where it cannot go on."""
    scores = open_scores(options.scores)
    select = select_candidates(scores, options)
    with new_output(options.output, "mine", options.engine) as store:
        sources = [] if scores.has_text else list(find_sources(scores).values())
        benchmark = excluded_prompts.benchmark_ngrams(options.decontaminate, options.ngram)
        groups = tuple(in_runs(scores.parts, lambda part: part.rows, options.task_rows))
        shards = in_runs(sources, lambda source: source.scored, options.task_rows)
        with work_folder(options) as work, engine(options) as run_tasks:
            plan = Plan(scores, per_task(options), work, select, groups)
            parts, counts = _mine(plan, run_tasks, shards, benchmark)
        about = _ABOUT.format(rank_by=options.rank_by, strategy=options.strategy)
        if benchmark or options.near_duplicates is not None:
            about += f"\n\n{_COMPARED}"
        finish(store, Made("mine", about, scores, options, parts, counts))
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    logger.info("%s: %s", options.output, told)


def _mine(
    plan: Plan, run_tasks: Run, sources: list[Any], benchmark: dict[str, str]
) -> tuple[list[PartEntry], dict[str, Any]]:
    options, buckets = plan.options, range(plan.num_buckets)
    groups = range(len(plan.groups))
    valueless = sum(run_tasks(partial(read_candidates, plan), groups))
    logger.info("read %d candidates", plan.scores.rows)
    slope = 0.0
    if options.length_control == "residual":
        sums = run_tasks(partial(pair_sql.measure_length, plan), buckets)
        squares = math.fsum(s for _, s in sums)
        slope = math.fsum(s for s, _ in sums) / squares if squares else 0.0
        logger.info("a token more adds %g to value", slope)
    counts: dict[str, Any] = _sum(run_tasks(partial(pair_sql.mine_bucket, plan, slope), buckets))
    logger.info("took %d pairs", counts["pairs taken"])
    if plan.scores.has_text:
        files = run_tasks(partial(candidate_text.text_of_parts, plan), groups)
    else:
        files = run_tasks(partial(candidate_text.text_of_sources, plan), list(enumerate(sources)))
    texts = [name for names in files for name in names]
    removed, screened = _screen(plan, run_tasks, texts, benchmark)
    made = run_tasks(partial(trainer_rows.assemble_bucket, plan, texts, removed), buckets)
    counts |= {"candidates without a value": valueless, **screened, **_sum([found for _, found in made])}
    if slope:
        counts["value added by a token"] = slope
    return [part for found, _ in made for part in found], counts


def _screen(
    plan: Plan, run_tasks: Run, texts: list[str], benchmark: dict[str, str]
) -> tuple[frozenset[str], dict[str, int]]:
    """Prompts to remove, and how many for which reason; the contaminated ones are listed in a file."""
    options = plan.options
    if not benchmark and options.near_duplicates is None:
        return frozenset(), {}
    task = partial(excluded_prompts.screen_bucket, plan, texts, benchmark)
    found = [entry for entries in run_tasks(task, range(plan.num_buckets)) for entry in entries]
    counts, removed = {}, {entry.prompt_id for entry in found}
    if benchmark:
        counts["prompts of a benchmark"] = len(found)
        lines = "".join(json.dumps(entry._asdict(), ensure_ascii=False) + "\n" for entry in found)
        Store(options.output).write(CONTAMINATED, lines.encode())
    if options.near_duplicates is not None:
        duplicates = excluded_prompts.near_duplicates(plan)
        counts["near-duplicate prompts"] = len(duplicates)
        removed |= set(duplicates)
    return frozenset(removed), counts


def _sum(counted: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: sum(counts[name] for counts in counted) for name in counted[0]}
