"""All numbers of a report, as report.json holds them.

    version, made_at, armo_ray   of this file's keys; when and by which armo_ray it was made
    outputs, complete, runs      what was read; whether all of it is whole; the _run.json of each
    model, inputs, totals        the footer of the scores; the largest shards; sums over the commit records
    speed                        times, replicas, cost, throughput, slowest units; null without times
    rejects                      by reason: rejects, examples
    scored                       null where nothing was:
      columns                    score, lengths, rewards.NAME, gating.NAME: mean, sd, min, max, quantiles, histogram
      correlation                names and matrix, Pearson's
      influence                  parts of the score: mean, mean_absolute, share_of_variance
      length                     columns: slope for 100 tokens, intercept, correlation; bins: mean score by length
      prompts, groups, pairs     within prompts; by kept columns and directories; chosen against rejected, or null
      examples                   highest and lowest
    drift                        against, limits, drifted, columns: psi, ks, quantiles; null without --against

What is no number, such as the correlation of a constant, is null. A histogram's bin holds its upper edge.
"""

from collections.abc import Mapping
from typing import Any

import duckdb

from armo_ray.errors import ConfigError
from armo_ray.outputs.scores import Scores, check_models, database, scan
from armo_ray.report.columns import SCORE, find_columns
from armo_ray.report.drift import drift
from armo_ray.report.examples import extremes, rejects
from armo_ray.report.groups import by_group, chosen_groups, length_bins
from armo_ray.report.options import ReportOptions
from armo_ray.report.pairs import by_pair
from armo_ray.report.prompts import by_prompt
from armo_ray.report.read import Committed, open_committed
from armo_ray.report.speed import speed
from armo_ray.report.summary import (
    by_length,
    correlations,
    distributions,
    histograms,
    influence,
    sample_bounds,
    summarize,
)
from armo_ray.storage import commits
from armo_ray.version import __version__

VERSION = 1  # of the keys


def measure(options: ReportOptions) -> dict[str, Any]:
    """Read outputs as far as they are committed. Raises ConfigError where they cannot be compared."""
    found = open_committed(options.scores)
    older = None if options.against is None else open_committed([options.against])
    if older is not None:
        _check_older(found, older)
    scores = found.scores
    told: dict[str, Any] = {
        "version": VERSION,
        "made_at": commits.now(),
        "armo_ray": __version__,
        "outputs": scores.outputs,
        "complete": found.complete,
        "model": scores.metadata or _model(found.runs[0]),
        "runs": found.runs,
        "inputs": _inputs(found),
        "totals": found.totals,
        "speed": speed(found.records, found.runs, options.price),
        "scored": None,
        "drift": None,
    }
    with database(options) as con:
        told["rejects"] = rejects(con, scores.rejects, options.examples)
        if scores.parts:
            told["scored"] = _scored(con, scores, options)
        if older is not None:
            told["drift"] = _drift(con, found.scores, older.scores, options)
    return told


def _model(run: Mapping[str, Any]) -> dict[str, Any]:
    """What the _run.json of an output without scores says of its model."""
    identity, config = run.get("identity", {}), run.get("config", {})
    told = {"model": config.get("model"), "model_revision": config.get("revision")}
    told |= {"model_family": identity.get("family"), "dtype": identity.get("dtype")}
    return told | {"model_fingerprint": identity.get("model_fingerprint")}


def _check_older(found: Committed, older: Committed) -> None:
    if not older.scores.parts:
        raise ConfigError(f"against {older.scores.outputs[0]}: no candidate was scored there")
    if found.scores.parts:
        outputs = (older.scores.outputs[0], found.scores.outputs[0])
        check_models(outputs, (older.scores.metadata, found.scores.metadata))


def _inputs(found: Committed) -> list[dict[str, Any]]:
    """The shards with the most candidates."""
    sources: dict[str, int] = {}
    for record in found.records:
        sources[record["source"]] = sources.get(record["source"], 0) + record["candidates"]
    most = sorted(sources.items(), key=lambda entry: (-entry[1], entry[0]))[:10]
    return [{"source": source, "candidates": count} for source, count in most]


def _scored(con: duckdb.DuckDBPyConnection, scores: Scores, options: ReportOptions) -> dict[str, Any]:
    columns = find_columns(con, scores)
    con.execute(f"CREATE OR REPLACE TEMP VIEW candidates AS {columns.view(scores.parts)}")
    summary = summarize(con, columns, scores)
    values = distributions(summary)
    deviation = values[SCORE]["sd"]
    groups = chosen_groups(summary.distinct, summary.rows)
    prompts = by_prompt(con, columns, groups, summary.rows, deviation)
    by_value = by_group(con, columns, groups)
    for name, rows in by_value.items():
        for row in rows:
            row["best_of_prompt"] = prompts["best"][name].get(row["value"], 0)
    return {
        "columns": values,
        "correlation": correlations(summary),
        "influence": influence(summary),
        "length": {
            "columns": by_length(summary),
            "bins": length_bins(con, columns, summary.histograms["num_response_tokens"]),
        },
        "prompts": {name: value for name, value in prompts.items() if name != "best"},
        "groups": by_value,
        "pairs": by_pair(con, columns, groups, deviation) if summary.distinct["role"] > 1 else None,
        "examples": extremes(con, columns, scores, options.examples),
    }


def _drift(
    con: duckdb.DuckDBPyConnection, scores: Scores, older: Scores, options: ReportOptions
) -> dict[str, Any]:
    """Where nothing was scored there are no columns, and that is told as drift."""
    told = {"against": older.outputs[0], "max_psi": options.max_psi, "max_ks": options.max_ks}
    if not scores.parts:
        return {**told, "prompts": None, "columns": {}, "drifted": ["nothing was scored"]}
    columns = find_columns(con, older, grouped=False)  # the two may carry different ones
    bounds = sample_bounds(con, columns, older)
    found = [histograms(con, columns, one, bounds) for one in (older, scores)]
    prompts = [_prompts(con, one) for one in (older, scores)]
    return {**told, **drift(found[0], found[1], (prompts[0], prompts[1]), (options.max_psi, options.max_ks))}


def _prompts(con: duckdb.DuckDBPyConnection, scores: Scores) -> int:
    sql = f"SELECT count(DISTINCT hash(prompt_id)) FROM ({scan(scores.parts)})"
    return int(con.execute(sql).fetchall()[0][0])
