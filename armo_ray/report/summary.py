"""One scan of all candidates: distributions, correlations, what follows length, what the score is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from armo_ray.outputs.scores import Scores
from armo_ray.report.columns import LENGTH, SCORE, Columns, sampled
from armo_ray.report.histograms import Bounds, Floats, Histogram, counted, find_bounds, histogram_of

_PER_TOKENS = 100  # slopes are for so many more tokens


@dataclass(frozen=True)
class Summary:
    """Of every column of values its histogram, and the moments of all but the gates.

    mean, covariance: (V,) and (V, V) of the columns in `names`, then the parts of the score.
    """

    rows: int
    histograms: Mapping[str, Histogram]
    names: list[str]
    mean: Floats
    covariance: Floats
    gates: Mapping[str, float]  # means
    absolute: Mapping[str, float]  # means of the parts of the score without their signs
    distinct: Mapping[str, int]  # about so many values of the columns to group by


def sample_bounds(con: duckdb.DuckDBPyConnection, columns: Columns, scores: Scores) -> dict[str, Bounds]:
    """Bounds for the histograms of all values, from some of the parts."""
    places = {name: columns.alias(name) for name in columns.values}
    whole = [name for name in places if name.startswith("num_")]
    return find_bounds(con, f"({columns.view(sampled(scores.parts))})", places, whole)


def histograms(
    con: duckdb.DuckDBPyConnection, columns: Columns, scores: Scores, bounds: Mapping[str, Bounds]
) -> dict[str, Histogram]:
    """Of all values over given bounds, in one scan."""
    selects = ", ".join(counted(columns.alias(name), own) for name, own in bounds.items())
    row = con.execute(f"SELECT {selects} FROM ({columns.view(scores.parts)})").fetchall()[0]
    return {name: histogram_of(row[3 * i : 3 * i + 3], own) for i, (name, own) in enumerate(bounds.items())}


def summarize(con: duckdb.DuckDBPyConnection, columns: Columns, scores: Scores) -> Summary:
    """Scan the view `candidates` once."""
    places = {name: columns.alias(name) for name in columns.values}
    bounds = sample_bounds(con, columns, scores)
    moved = [columns.alias(name) for name in columns.values if name not in columns.gates]
    moved += [f"p{i}" for i in range(len(columns.parts))]
    averages = ", ".join(f"avg({m})" for m in moved)
    center = con.execute(f"SELECT {averages} FROM ({columns.view(sampled(scores.parts))})").fetchall()[0]
    pairs = [(i, j) for i in range(len(moved)) for j in range(i + 1) if _wanted(columns, i, j)]
    # about the means of a sample, so that sums of products lose no digits
    centered = ", ".join(f"{m} - {c!r} AS d{i}" for i, (m, c) in enumerate(zip(moved, center, strict=True)))
    selects = ["count(*)", *(counted(sql, bounds[name]) for name, sql in places.items())]
    selects += [f"sum(d{i})" for i in range(len(moved))]
    selects += [f"sum(d{i} * d{j})" for i, j in pairs]
    selects += [f"avg({columns.alias(name)})" for name in columns.gates]
    selects += [f"avg(abs(p{i}))" for i in range(len(columns.parts))]
    selects += [  # two values may be counted as one
        f"greatest(approx_count_distinct(g{i}), if(min(g{i}) <> max(g{i}), 2, 0))"
        for i in range(len(columns.groups))
    ]
    sql = f"SELECT {', '.join(selects)} FROM (SELECT *, {centered} FROM candidates)"
    read = iter(con.execute(sql).fetchall()[0])

    def take(count: int) -> list[Any]:
        return [next(read) for _ in range(count)]

    rows = next(read)
    histograms = {name: histogram_of(take(3), bounds[name]) for name in places}
    sums = np.array(take(len(moved)), np.float64) / rows
    products = np.zeros((len(moved), len(moved)))
    for (i, j), total in zip(pairs, take(len(pairs)), strict=True):
        products[i, j] = products[j, i] = total / rows - sums[i] * sums[j]
    return Summary(
        rows,
        histograms,
        [name for name in columns.values if name not in columns.gates],
        np.array(center, np.float64) + sums,
        products,
        dict(zip(columns.gates, take(len(columns.gates)), strict=True)),
        dict(zip(columns.parts, take(len(columns.parts)), strict=True)),
        dict(zip(columns.groups, take(len(columns.groups)), strict=True)),
    )


def _wanted(columns: Columns, i: int, j: int) -> bool:
    """Of the parts of the score only their own variance and what they share with the score."""
    return i < len(columns.values) - len(columns.gates) or j in (0, i)


def distributions(found: Summary) -> dict[str, Any]:
    """Of every column: mean, deviation, quantiles, histogram."""
    told = {}
    for name, histogram in found.histograms.items():
        if name in found.names:
            i = found.names.index(name)
            mean, deviation = float(found.mean[i]), float(np.sqrt(max(found.covariance[i, i], 0.0)))
        else:
            mean, deviation = found.gates[name], None
        told[name] = {
            "mean": mean,
            "sd": deviation,
            "min": histogram.low,
            "max": histogram.high,
            "quantiles": histogram.quantiles(),
            "histogram": histogram.to_json(),
        }
    return told


def correlations(found: Summary) -> dict[str, Any]:
    """Pearson's, of score, response length and rewards; null where a column is constant."""
    names = [name for name in found.names if name != "num_prompt_tokens"]
    at = [found.names.index(name) for name in names]
    return {"names": names, "matrix": [[_correlation(found, i, j) for j in at] for i in at]}


def _correlation(found: Summary, i: int, j: int) -> float | None:
    a, b = found.covariance[i, i], found.covariance[j, j]
    if not (_varies(found, i) and _varies(found, j)):
        return None
    return float(np.clip(found.covariance[i, j] / np.sqrt(a * b), -1, 1))


def _varies(found: Summary, i: int) -> bool:
    """Whether a variance is more than what rounding makes of a constant."""
    return bool(found.covariance[i, i] > 1e-14 * (1 + found.mean[i] ** 2))


def by_length(found: Summary) -> dict[str, Any]:
    """Least squares of score and every reward on the response's tokens."""
    at = found.names.index(LENGTH)
    told = {}
    for i, name in enumerate(found.names):
        if name.startswith("num_"):
            continue
        variance, own = found.covariance[at, at], float(np.sqrt(max(found.covariance[i, i], 0)))
        slope = float(found.covariance[i, at] / variance) if _varies(found, at) else None
        told[name] = {
            "slope": None if slope is None else slope * _PER_TOKENS,
            "intercept": None if slope is None else float(found.mean[i] - slope * found.mean[at]),
            "slope_in_sd": slope * _PER_TOKENS / own if slope is not None and _varies(found, i) else None,
            "correlation": _correlation(found, i, at),
        }
    return told


def influence(found: Summary) -> dict[str, Any]:
    """Of every part of the score: its mean, with and without signs, and its share of the score's variance.

    The shares add up to 1: each is the covariance of the part and the score over the variance of the score.
    """
    score, first = found.names.index(SCORE), len(found.names)
    told = {}
    for i, (name, absolute) in enumerate(found.absolute.items(), first):
        share = found.covariance[i, score] / found.covariance[score, score] if _varies(found, score) else None
        told[name] = {
            "mean": float(found.mean[i]),
            "mean_absolute": absolute,
            "share_of_variance": None if share is None else float(share),
        }
    return told
