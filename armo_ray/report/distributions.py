"""One scan of all candidates: distributions, correlations, and what drives the score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from armo_ray.outputs.scores import Scores
from armo_ray.report.columns import SCORE, Columns, sampled
from armo_ray.report.histograms import Bins, Bounds, Floats, Histogram, counted, find_bounds, histogram_of


@dataclass(frozen=True)
class Summary:
    """The histogram of every column of values, and the moments of all of them except the gates.

    mean, covariance: (V,) and (V, V), of the columns in `names`, then of the terms of the score.
    """

    rows: int
    histograms: Mapping[str, Histogram]
    names: list[str]
    mean: Floats
    covariance: Floats
    gates: Mapping[str, float]  # means
    absolute: Mapping[str, float]  # mean absolute values of the terms of the score
    distinct: Mapping[str, int]  # approximate number of values of each column to group by


@dataclass(frozen=True)
class Distribution:
    """The values of a column; sd is None for gates."""

    mean: float
    sd: float | None
    min: float
    max: float
    quantiles: dict[str, float]
    histogram: Bins


@dataclass(frozen=True)
class Correlation:
    """Pearson's correlation of every pair of columns; None if one is constant."""

    names: list[str]
    matrix: list[list[float | None]]


@dataclass(frozen=True)
class Influence:
    """A term of the score. The shares of all terms add up to 1: covariance with the score over its variance."""

    mean: float
    mean_absolute: float
    share_of_variance: float | None


def sample_bounds(con: duckdb.DuckDBPyConnection, columns: Columns, scores: Scores) -> dict[str, Bounds]:
    """Bounds for the histograms of all values, from a sample of the parts."""
    places = {name: columns.alias(name) for name in columns.values}
    whole = [name for name in places if name.startswith("num_")]
    return find_bounds(con, f"({columns.view(sampled(scores.parts))})", places, whole)


def histograms(
    con: duckdb.DuckDBPyConnection, columns: Columns, scores: Scores, bounds: Mapping[str, Bounds]
) -> dict[str, Histogram]:
    """The histograms of all values over given bounds, in one scan."""
    return histograms_by(con, columns, scores, bounds, "NULL")[None]


def histograms_by(
    con: duckdb.DuckDBPyConnection,
    columns: Columns,
    scores: Scores,
    bounds: Mapping[str, Bounds],
    by: str,
) -> dict[str | None, dict[str, Histogram]]:
    """The same of the rows with each value of `by`, which is SQL over the view."""
    places = {name: columns.alias(name) for name in bounds}
    selects = ", ".join(counted(place, place) for place in places.values())
    ends = {place: bounds[name].all.tolist() for name, place in places.items()}
    rows = con.execute(f"SELECT {by}, {selects} FROM ({columns.view(scores.parts)}) GROUP BY 1", ends)
    return {
        value: {
            name: histogram_of(row[3 * i : 3 * i + 3], own) for i, (name, own) in enumerate(bounds.items())
        }
        for value, *row in rows.fetchall()
    }


def summarize(con: duckdb.DuckDBPyConnection, columns: Columns, scores: Scores) -> Summary:
    """Scan all candidates once."""
    places = {name: columns.alias(name) for name in columns.values}
    bounds = sample_bounds(con, columns, scores)
    moments = [columns.alias(name) for name in columns.values if name not in columns.gates]
    moments += [f"p{i}" for i in range(len(columns.terms))]
    averages = ", ".join(f"avg({m})" for m in moments)
    some = columns.view(sampled(scores.parts), terms=True)
    center = con.execute(f"SELECT {averages} FROM ({some})").fetchall()[0]
    pairs = [(i, j) for i in range(len(moments)) for j in range(i + 1) if _is_needed(columns, i, j)]
    # relative to the means of a sample, so that sums of products lose no digits
    centered = ", ".join(f"{m} - {c!r} AS d{i}" for i, (m, c) in enumerate(zip(moments, center, strict=True)))
    selects = ["count(*)", *(counted(place, place) for place in places.values())]
    selects += [f"sum(d{i})" for i in range(len(moments))]
    selects += [f"sum(d{i} * d{j})" for i, j in pairs]
    selects += [f"avg({columns.alias(name)})" for name in columns.gates]
    selects += [f"avg(abs(p{i}))" for i in range(len(columns.terms))]
    selects += [  # approx_count_distinct may count two values as one
        f"greatest(approx_count_distinct(g{i}), if(min(g{i}) <> max(g{i}), 2, 0))"
        for i in range(len(columns.groups))
    ]
    everything = columns.view(scores.parts, terms=True)
    sql = f"SELECT {', '.join(selects)} FROM (SELECT *, {centered} FROM ({everything}))"
    ends = {place: bounds[name].all.tolist() for name, place in places.items()}
    read = iter(con.execute(sql, ends).fetchall()[0])

    def take(count: int) -> list[Any]:
        return [next(read) for _ in range(count)]

    rows = next(read)
    histograms = {name: histogram_of(take(3), bounds[name]) for name in places}
    sums = np.array(take(len(moments)), np.float64) / rows
    products = np.zeros((len(moments), len(moments)))
    for (i, j), total in zip(pairs, take(len(pairs)), strict=True):
        products[i, j] = products[j, i] = total / rows - sums[i] * sums[j]
    return Summary(
        rows,
        histograms,
        [name for name in columns.values if name not in columns.gates],
        np.array(center, np.float64) + sums,
        products,
        dict(zip(columns.gates, take(len(columns.gates)), strict=True)),
        dict(zip(columns.terms, take(len(columns.terms)), strict=True)),
        dict(zip(columns.groups, take(len(columns.groups)), strict=True)),
    )


def _is_needed(columns: Columns, i: int, j: int) -> bool:
    """The terms of the score need only their own variance and their covariance with the score."""
    return i < len(columns.values) - len(columns.gates) or j in (0, i)


def distributions(summary: Summary) -> dict[str, Distribution]:
    """The distribution of every column."""
    return {name: _distribution(summary, name, histogram) for name, histogram in summary.histograms.items()}


def _distribution(summary: Summary, name: str, histogram: Histogram) -> Distribution:
    if name in summary.names:
        i = summary.names.index(name)
        mean, deviation = float(summary.mean[i]), float(np.sqrt(max(summary.covariance[i, i], 0.0)))
    else:
        mean, deviation = summary.gates[name], None
    return Distribution(
        mean, deviation, histogram.low, histogram.high, histogram.quantiles(), histogram.bins()
    )


def correlations(summary: Summary) -> Correlation:
    """The correlations of score, response length and rewards."""
    names = [name for name in summary.names if name != "num_prompt_tokens"]
    at = [summary.names.index(name) for name in names]
    return Correlation(names, [[correlation(summary, i, j) for j in at] for i in at])


def correlation(summary: Summary, i: int, j: int) -> float | None:
    a, b = summary.covariance[i, i], summary.covariance[j, j]
    if not (varies(summary, i) and varies(summary, j)):
        return None
    return float(np.clip(summary.covariance[i, j] / np.sqrt(a * b), -1, 1))


def varies(summary: Summary, i: int) -> bool:
    """Whether the variance of a column is larger than rounding could make that of a constant."""
    return bool(summary.covariance[i, i] > 1e-14 * (1 + summary.mean[i] ** 2))


def influence(summary: Summary) -> dict[str, Influence]:
    """The influence of every term of the score."""
    score, first = summary.names.index(SCORE), len(summary.names)
    terms = {}
    for i, (name, absolute) in enumerate(summary.absolute.items(), first):
        share = None
        if varies(summary, score):
            share = float(summary.covariance[i, score] / summary.covariance[score, score])
        terms[name] = Influence(float(summary.mean[i]), absolute, share)
    return terms
