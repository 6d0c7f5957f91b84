"""All numbers of a report, as report.json holds them.

    version, made_at, armo_ray   version of these keys; when and by which armo_ray the report was made
    outputs, complete, runs      what was read; whether all of it is complete; the _run.json of each
    model, inputs, totals        the metadata of the scores; the largest shards; sums over the commit records
    speed                        times, replicas, cost, throughput, slowest units; null without times
    asked                        requests, tokens and cost of a judge; replies by finish reason; verdicts, or null
    scored                       null if nothing was:
      columns                    score, lengths, rewards.NAME, gating.NAME: mean, sd, min, max, quantiles, histogram
      correlation                names and matrix, Pearson's
      influence                  terms of the score: mean, mean_absolute, share_of_variance
      length                     columns: slope per 100 tokens, intercept, correlation; bins: mean score by length;
                                 null where no tokens were counted
      prompts, groups, pairs     within prompts; by kept columns and directories; chosen against rejected, or null
      examples                   highest and lowest
    drift                        against, limits, drifted, columns: psi, ks, quantiles; mean_score, verdict; per: the
                                 values of a column, the worst first; null without --against
    nights                       by, and the nights, oldest first: counts, p10 and p90 of the score, values: value, mean
                                 and sd of those before, outside; null without --by
    rejects                      by reason: rejects, examples

A number that does not exist, such as the correlation of a constant, is null. A histogram's bin includes its upper edge.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import duckdb

from armo_ray.outputs.database import database
from armo_ray.outputs.scores import Scores
from armo_ray.report.against import drift_from, open_older
from armo_ray.report.asked import Asked, asked
from armo_ray.report.columns import SCORE, find_columns
from armo_ray.report.distributions import (
    Correlation,
    Distribution,
    Influence,
    correlations,
    distributions,
    influence,
    summarize,
)
from armo_ray.report.drift import Drift
from armo_ray.report.examples import Examples, Rejects, extremes, rejects
from armo_ray.report.groups import Group, by_group, chosen_groups
from armo_ray.report.length import Length, by_length
from armo_ray.report.nights import Nights, by_night
from armo_ray.report.options import ReportOptions
from armo_ray.report.pairs import Pairs, by_pair
from armo_ray.report.prompts import Prompts, by_prompt
from armo_ray.report.read import Committed, open_committed
from armo_ray.report.speed import Speed, speed
from armo_ray.storage import commits
from armo_ray.version import __version__

VERSION = 1  # of the keys
_MOST_INPUTS = 10


@dataclass(frozen=True)
class Input:
    """A shard and how many candidates were read from it."""

    source: str
    candidates: int


@dataclass(frozen=True)
class Scored:
    """What is known about the candidates that were scored."""

    columns: dict[str, Distribution]
    correlation: Correlation
    influence: dict[str, Influence]
    length: Length | None
    prompts: Prompts
    groups: dict[str, list[Group]]
    pairs: Pairs | None
    examples: Examples


@dataclass(frozen=True)
class Report:
    """What report.json holds, key by key."""

    version: int
    made_at: str
    armo_ray: str
    outputs: list[str]
    complete: bool
    model: Mapping[str, Any]
    runs: list[Mapping[str, Any]]
    inputs: list[Input]
    totals: Mapping[str, Any]
    speed: Speed | None
    asked: Asked | None
    scored: Scored | None
    drift: Drift | None
    nights: Nights | None
    rejects: list[Rejects]

    def to_json(self) -> bytes:
        """The content of report.json, with objectives in the order of the model."""
        content = asdict(self, dict_factory=_keys)
        return json.dumps(content, indent=1, default=str, allow_nan=False).encode() + b"\n"


def _keys(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """`from_` is the key from; the limits of chance are left out if they are unknown."""
    return {
        name.removesuffix("_"): value
        for name, value in fields
        if value is not None or not name.startswith("chance_")
    }


def measure(options: ReportOptions) -> Report:
    """Measure what is committed of outputs. Raises ConfigError if they cannot be compared."""
    committed = open_committed(options.scores, options.partition)
    older = open_older(committed, options.against) if options.against else None
    scores = committed.scores
    with database(options) as con:
        nights = _nights(con, committed, options)
        rejected = rejects(con, scores.rejects, options.examples)
        drifted = None if older is None else drift_from(con, older, scores, options)
        scored = _scored(con, scores, options) if scores.parts else None
        of_judge = asked(con, committed.records, committed.runs, scores)
    return Report(
        version=VERSION,
        made_at=commits.now(),
        armo_ray=__version__,
        outputs=list(scores.outputs),
        complete=committed.complete,
        model=scores.metadata or _model(committed.runs[0]),
        runs=list(committed.runs),
        inputs=_inputs(committed),
        totals=committed.totals,
        speed=speed(committed.records, committed.runs, options.price),
        asked=of_judge,
        scored=scored,
        drift=drifted,
        nights=nights,
        rejects=rejected,
    )


def _model(run: Mapping[str, Any]) -> dict[str, Any]:
    """The model of an output without scores, from its _run.json."""
    identity, config = run.get("identity", {}), run.get("config", {})
    return {
        "model": config.get("model"),
        "model_revision": config.get("revision"),
        "model_family": identity.get("family"),
        "dtype": identity.get("dtype"),
        "model_fingerprint": identity.get("model_fingerprint"),
    }


def _nights(con: duckdb.DuckDBPyConnection, committed: Committed, options: ReportOptions) -> Nights | None:
    if options.by is None or not committed.scores.parts:  # without parts no directory is known
        return None
    return by_night(con, committed, options.by, options.price)


def _inputs(committed: Committed) -> list[Input]:
    """The shards with the most candidates."""
    sources: dict[str, int] = {}
    for record in committed.records:
        sources[record["source"]] = sources.get(record["source"], 0) + record["candidates"]
    ranked = sorted(sources.items(), key=lambda entry: (-entry[1], entry[0]))
    return [Input(source, count) for source, count in ranked[:_MOST_INPUTS]]


def _scored(con: duckdb.DuckDBPyConnection, scores: Scores, options: ReportOptions) -> Scored:
    columns = find_columns(con, scores)
    con.execute(f"CREATE OR REPLACE TEMP VIEW candidates AS {columns.view(scores.parts)}")
    summary = summarize(con, columns, scores)
    values = distributions(summary)
    deviation = values[SCORE].sd or 0.0
    groups = chosen_groups(summary.distinct, summary.rows)
    prompts, winners = by_prompt(con, columns, groups, summary.rows, deviation)
    return Scored(
        columns=values,
        correlation=correlations(summary),
        influence=influence(summary),
        length=by_length(con, columns, summary) if columns.has_lengths else None,
        prompts=prompts,
        groups=by_group(con, columns, winners),
        pairs=by_pair(con, columns, groups, deviation) if summary.distinct["role"] > 1 else None,
        examples=extremes(con, columns, scores, options.examples),
    )
