"""Score and rewards against the length of the response: trends, and the points of the length chart."""

from dataclasses import dataclass

import duckdb
import numpy as np

from armo_ray.report.columns import LENGTH, SCORE, Columns
from armo_ray.report.distributions import Summary, correlation, varies
from armo_ray.report.histograms import Histogram

_PER_TOKENS = 100  # unit of the slopes
_BINS = 12


@dataclass(frozen=True)
class Trend:
    """Least squares of a column on the response's tokens; slopes are per 100 tokens. None if one is constant."""

    slope: float | None
    intercept: float | None
    slope_in_sd: float | None
    correlation: float | None


@dataclass(frozen=True)
class LengthBin:
    """Candidates whose responses have from `from_` to `to` tokens."""

    from_: int
    to: int
    candidates: int
    mean_tokens: float
    mean_score: float
    sd_score: float


@dataclass(frozen=True)
class Length:
    """How the score and every reward change with the length of the response."""

    columns: dict[str, Trend]
    bins: list[LengthBin]


def by_length(con: duckdb.DuckDBPyConnection, columns: Columns, summary: Summary) -> Length:
    """The trends of score and every reward, and the candidates in bins by length."""
    length = summary.names.index(LENGTH)
    names = [name for name in summary.names if not name.startswith("num_")]
    trends = {name: _trend(summary, summary.names.index(name), length) for name in names}
    return Length(trends, _bins(con, columns, summary.histograms[LENGTH]))


def _trend(summary: Summary, i: int, length: int) -> Trend:
    if not varies(summary, length):
        return Trend(None, None, None, None)
    slope = float(summary.covariance[i, length] / summary.covariance[length, length])
    intercept = float(summary.mean[i] - slope * summary.mean[length])
    deviation = float(np.sqrt(max(summary.covariance[i, i], 0)))
    in_sd = slope * _PER_TOKENS / deviation if varies(summary, i) else None
    return Trend(slope * _PER_TOKENS, intercept, in_sd, correlation(summary, i, length))


def _bins(con: duckdb.DuckDBPyConnection, columns: Columns, lengths: Histogram) -> list[LengthBin]:
    """The candidates by the length of their response, about equally many in each bin."""
    length, score = columns.alias(LENGTH), columns.alias(SCORE)
    ends = sorted({round(lengths.quantile(i / _BINS)) for i in range(1, _BINS)} - {round(lengths.high)})
    place = " + ".join(f"({length} > {end})::INT" for end in ends) or "0"
    rows = con.execute(
        f"""SELECT {place} AS bin, min({length}), max({length}), count(*), avg({length}), avg({score}),
                stddev_pop({score}) FROM candidates GROUP BY bin ORDER BY bin"""
    ).fetchall()
    return [LengthBin(*row[1:]) for row in rows]
