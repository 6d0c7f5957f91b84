"""The strategies of mining: the preference pairs of a bucket of prompts, in SQL.

Candidates rank by `value` only: the chosen one always has the larger value, so ties give no pair. A strategy
selects pairs from the candidates that meet the constraints of their side; the other conditions then drop pairs, and
a dropped pair is not replaced by another.
"""

import math

import duckdb
import numpy as np

from armo_ray.curate import candidate_text
from armo_ray.curate.candidates import check_once, load_candidates
from armo_ray.curate.excluded_datasets import drop_excluded
from armo_ray.curate.job import CurationJob
from armo_ray.curate.options import MineOptions
from armo_ray.curate.scratch_files import read_sorted, write_parquet
from armo_ray.outputs.database import database

Counts = dict[str, int]


def measure_length(job: CurationJob, bucket: int) -> tuple[float, float]:
    """Sums over a bucket of length * value and of length squared, with each prompt's means subtracted first.

    Length is in response tokens. The order of summation is fixed, so the sums are the same on any number of threads.
    """
    with database(job.options) as con:
        _load(con, job, bucket)
        columns = con.sql(
            "SELECT dense_rank() OVER (ORDER BY prompt) - 1 AS prompt, value, "
            "num_response_tokens::DOUBLE AS length FROM candidates ORDER BY i"
        ).fetchnumpy()
    prompt, value, length = (np.asarray(columns[name]) for name in ("prompt", "value", "length"))
    counts = np.bincount(prompt)
    value = value - (np.bincount(prompt, value) / counts)[prompt]
    length = length - (np.bincount(prompt, length) / counts)[prompt]
    return math.fsum(length * value), math.fsum(length * length)


def mine_bucket(job: CurationJob, slope: float, bucket: int) -> Counts:
    """Write the pairs of a bucket and the list of candidates whose text they need; returns counts.

    `slope` per response token is subtracted from every value.
    """
    options = job.options
    with database(options) as con:
        excluded = _load(con, job, bucket)
        check_once(con)
        if slope:
            con.execute(f"UPDATE candidates SET value = value - {slope!r}::DOUBLE * num_response_tokens")
        con.execute(f"CREATE TEMP TABLE prompts AS {_prompts(options)}")
        con.execute(f"CREATE TEMP TABLE taken AS {_taken(options)}")
        con.execute(f"CREATE TEMP TABLE kept AS {_kept(options)}")
        counts = excluded | _counts(con, options)
        write_parquet(job.scratch, f"pairs-{bucket:05d}", con.sql(_with_ids(options)).to_arrow_table())
        write_parquet(job.scratch, f"text-needed-{bucket:05d}", con.sql(_text_needed(job)).to_arrow_table())
    return counts


def _load(con: duckdb.DuckDBPyConnection, job: CurationJob, bucket: int) -> Counts:
    """Load a bucket without the prompts of --exclude; returns their count, if there is such an option."""
    load_candidates(con, read_sorted(con, job.scratch, job.candidates.names, job.bucket(bucket)))
    return {"prompts of excluded datasets": drop_excluded(con, job, bucket)} if job.options.exclude else {}


def late_columns(options: MineOptions) -> tuple[str, ...]:
    """The columns of a candidate that rows hold."""
    kept = ("kept",) if options.keep else ()
    return (*_IN_ROWS, *kept) if options.layout == "trl" else kept


def undecisive_columns(options: MineOptions) -> tuple[str, ...]:
    """The columns of a candidate that do not decide its pairs."""
    needed = {"row_id"} if options.strategy == "best-random" else set()
    needed |= {"score"} if options.layout != "trl" else set()
    kept = ("kept",) if options.keep else ()
    return tuple(
        name for name in ("row_id", "score", "rewards", "num_prompt_tokens", *kept) if name not in needed
    )


_IN_ROWS = ("row_id", "score", "rewards", "num_response_tokens")


def _prompts(options: MineOptions) -> str:
    """The prompts: the number of their candidates and, where the strategy uses it, the best that can be chosen."""
    columns = ["prompt", "count(*) AS num_candidates"]
    if options.strategy in _REJECTED:
        columns.append("arg_max(i, {can_be: can_be_chosen, value: value, earliest: -i}) AS best")
    if options.strategy != "best-vs-sigma":
        return f"SELECT {', '.join(columns)} FROM candidates GROUP BY prompt"
    # the list fixes the order of summation, so the sums are the same on any number of threads
    return (
        "SELECT * EXCLUDE (listed), list_avg(listed) - 2 * list_aggregate(listed, 'stddev_pop') AS target "
        f"FROM (SELECT {', '.join(columns)}, list(value ORDER BY i) AS listed FROM candidates GROUP BY prompt)"
    )


def _conditioned(options: MineOptions) -> list[str]:
    """Columns other than value that conditions compare between the two sides of a pair."""
    margins = [f"m{i}" for i, name in enumerate(options.min_margin) if name != "value"]
    return margins + [f"p{i}" for i in range(len(options.pareto))]


def _taken(options: MineOptions) -> str:
    """The pairs that the strategy selects; `dropped` is the index of the first condition that a pair fails, or null."""
    both_sides = ", ".join(f"c.{name} AS c_{name}, r.{name} AS r_{name}" for name in _compared(options))
    columns = f"c.prompt_id, c.prompt, {both_sides}, CASE {_dropped(options)} END AS dropped"
    allowed = (
        f"c.value > r.value AND c.can_be_chosen AND r.can_be_rejected "
        f"AND num_candidates >= {options.min_candidates}"
    )
    if options.strategy in _REJECTED:
        least = _REJECTED[options.strategy].format(seed=options.seed)
        return (
            f"SELECT {columns} FROM (SELECT c.i AS c_i, arg_min(r.i, {{{least}, earliest: r.i}}) AS r_i FROM prompts "
            f"JOIN candidates c ON c.i = best JOIN candidates r ON r.prompt = c.prompt WHERE {allowed} GROUP BY c.i) "
            f"JOIN candidates c ON c.i = c_i JOIN candidates r ON r.i = r_i"
        )
    placed, places = "FROM candidates", ""
    if options.strategy == "top-k-bottom-k":
        placed = (
            "SELECT *, row_number() OVER (PARTITION BY prompt ORDER BY can_be_chosen DESC, value DESC, i) AS best, "
            "row_number() OVER (PARTITION BY prompt ORDER BY can_be_rejected DESC, value, i) AS worst FROM candidates"
        )
        places = f"AND c.best <= {options.k} AND r.worst <= {options.k}"
    return (
        f"WITH placed AS ({placed}) SELECT {columns} FROM placed c JOIN placed r ON c.prompt = r.prompt "
        f"JOIN prompts p ON p.prompt = c.prompt WHERE {allowed} {places}"
    )


# of the candidates that may be rejected beside the best one, that is for which these are least
_REJECTED = {
    "best-worst": "value: r.value",
    "best-random": "random: md5(r.row_id || '/{seed}')",
    "best-vs-sigma": "distance: abs(r.value - target), value: r.value",
}


def _compared(options: MineOptions) -> list[str]:
    return ["i", "id", "value", "num_response_tokens", *_conditioned(options)]


def rules(options: MineOptions) -> dict[str, str]:
    """SQL conditions that a selected pair must meet, by the name of the rule."""
    conditions = {}
    for i, (name, margin) in enumerate(options.min_margin.items()):
        column = "value" if name == "value" else f"m{i}"
        conditions[f"min-margin {name}"] = f"c_{column} - r_{column} >= {margin!r}::DOUBLE"
    if options.pareto:
        names = [f"p{i}" for i in range(len(options.pareto))]
        no_worse = " AND ".join(f"c_{name} >= r_{name}" for name in names)
        better = " OR ".join(f"c_{name} > r_{name}" for name in names)
        conditions["pareto"] = f"{no_worse} AND ({better})"
    if options.max_length_ratio is not None:
        lengths = "c_num_response_tokens, r_num_response_tokens"
        conditions["max-length-ratio"] = (
            f"greatest({lengths}) <= {options.max_length_ratio!r}::DOUBLE * least({lengths})"
        )
    return conditions


def _dropped(options: MineOptions) -> str:
    cases = [
        f"WHEN NOT coalesce({sql}, false) THEN {place}" for place, sql in enumerate(rules(options).values())
    ]
    return " ".join(cases) or "WHEN false THEN 0"


def _kept(options: MineOptions) -> str:
    limit = f"QUALIFY pair <= {options.max_pairs}" if options.max_pairs else ""
    return (
        "SELECT prompt_id, c_id, r_id, c_value - r_value AS margin, row_number() OVER "
        "(PARTITION BY prompt ORDER BY c_value - r_value DESC, c_i, r_i) AS pair "
        f"FROM taken WHERE dropped IS NULL {limit}"
    )


def _with_ids(options: MineOptions) -> str:
    """Pairs with the ids of both candidates and, if the layout lists them, with all candidates of the prompt."""
    listed, source = "", ""
    if options.layout != "trl":
        listed = ", candidates"
        source = (
            "JOIN (SELECT prompt_id, list({id: id, score: score} ORDER BY i) AS candidates "
            "FROM candidates GROUP BY prompt_id) l ON l.prompt_id = k.prompt_id"
        )
    return f"SELECT k.prompt_id, pair, margin, c_id, r_id {listed} FROM kept k {source} ORDER BY k.prompt_id, pair"


def _text_needed(job: CurationJob) -> str:
    """The candidates whose text is needed, in the order in which their text is stored."""
    where = "id IN (SELECT c_id FROM kept UNION SELECT r_id FROM kept)"
    if job.options.layout != "trl":
        where = "prompt_id IN (SELECT prompt_id FROM kept)"
    return candidate_text.select_needed(job, where)


def _counts(con: duckdb.DuckDBPyConnection, options: MineOptions) -> Counts:
    def count(sql: str) -> int:
        return int(con.execute(sql).fetchall()[0][0])

    too_few = f"num_candidates < {options.min_candidates}"
    counts = {
        "candidates": count("SELECT count(*) FROM candidates"),
        "prompts": count("SELECT count(*) FROM prompts"),
        "prompts with too few candidates": count(f"SELECT count(*) FROM prompts WHERE {too_few}"),
    }
    if options.constraint:
        for side in ("chosen", "rejected"):
            name = f"candidates that a constraint keeps from being {side}"
            counts[name] = count(f"SELECT count(*) FROM candidates WHERE NOT can_be_{side}")
    counts["pairs taken"] = count("SELECT count(*) FROM taken")
    for place, name in enumerate(rules(options)):
        counts[f"pairs dropped by {name}"] = count(f"SELECT count(*) FROM taken WHERE dropped = {place}")
    if options.max_pairs:
        left = count("SELECT count(*) FROM taken WHERE dropped IS NULL")
        counts["pairs dropped by max-pairs"] = left - count("SELECT count(*) FROM kept")
    return counts
