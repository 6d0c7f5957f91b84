"""Counts of a column's values between bounds, which give its distribution and quantiles.

The bounds are quantiles of a sample, so that every bin holds about 1/200 of the rows whatever their distribution, and
the edges of 40 equal bins to draw. A value that many rows share has a bin of its own. A quantile is therefore off by
less than one bin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_LEVELS, _DRAWN = 200, 40
_TAIL = 0.005  # share of the rows on each side that the drawn bins leave out


@dataclass(frozen=True)
class Bounds:
    """The upper edges of a column's bins, in ascending order; `drawn` is a subset."""

    all: Floats
    drawn: Floats


@dataclass(frozen=True)
class Bins:
    """A histogram to draw: a count between each pair of adjacent edges, and the rows below and above all of them."""

    edges: list[float]
    counts: list[int]
    below: int
    above: int


@dataclass(frozen=True)
class Histogram:
    """The rows up to each bound, of `total` rows with values from `low` to `high`."""

    bounds: Bounds
    below: npt.NDArray[np.int64]  # rows that are at most each bound
    total: int
    low: float
    high: float

    def share(self, at: Floats) -> Floats:
        """The fraction of rows that are at most each of these values."""
        inside = (self.bounds.all > self.low) & (self.bounds.all < self.high)
        least = self.below[self.bounds.all == self.low]
        start = float(least[0]) if len(least) else 0.0
        places = np.r_[self.low, self.bounds.all[inside], self.high]
        counts = np.r_[start, self.below[inside], self.total]
        shares = np.interp(at, places, counts) / self.total
        return np.asarray(np.where(at < self.low, 0.0, np.where(at >= self.high, 1.0, shares)), np.float64)

    def quantile(self, share: float) -> float:
        rows = share * self.total
        i = int(np.searchsorted(self.below, rows))
        upper = min(self.bounds.all[i], self.high) if i < len(self.below) else self.high
        lower = max(self.bounds.all[i - 1], self.low) if i else self.low
        before = self.below[i - 1] if i else 0
        inside = (self.below[i] if i < len(self.below) else self.total) - before
        return float(lower + (upper - lower) * (rows - before) / inside) if inside else float(upper)

    def bins(self) -> Bins:
        """The bins to draw."""
        edges = self.bounds.drawn
        at = self.below[np.searchsorted(self.bounds.all, edges)]
        return Bins(edges.tolist(), np.diff(at).tolist(), int(at[0]), int(self.total - at[-1]))

    def quantiles(self) -> dict[str, float]:
        return {f"{share:g}": self.quantile(share) for share in QUANTILES}


def steps_of(values: Sequence[float]) -> Floats:
    """Bounds at sorted values; a repeated value gets a bin of its own, through a second bound just below it."""
    points, counts = np.unique(np.array(values, np.float64), return_counts=True)
    return np.union1d(points, np.nextafter(points[counts > 1], -np.inf))


def equal(low: float, high: float, whole: bool = False) -> Floats:
    """The edges of equal bins from low to high; for whole numbers, every bin holds equally many of them."""
    if whole:
        width = max(1, int(np.ceil((high - low + 1) / _DRAWN)))
        return np.asarray(np.arange(low - 0.5, high + width, width), np.float64)
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _DRAWN + 1)
    edges[0] = np.nextafter(low, -np.inf)  # a bin excludes its lower edge
    return edges


def find_bounds(
    con: duckdb.DuckDBPyConnection, relation: str, columns: Mapping[str, str], whole: Sequence[str] = ()
) -> dict[str, Bounds]:
    """Bounds for columns, given as SQL by name, from a sample of the rows; `whole` names columns of whole numbers."""
    levels = [Decimal(i) / _LEVELS for i in range(_LEVELS + 1)]
    selects = ", ".join(f"quantile_disc({sql}, $levels)" for sql in columns.values())
    row = con.execute(f"SELECT {selects} FROM {relation}", {"levels": levels}).fetchall()[0]
    bounds = {}
    for name, values in zip(columns, row, strict=True):
        tail = round(_TAIL * _LEVELS)
        drawn = equal(values[tail], values[-1 - tail], name in whole)
        bounds[name] = Bounds(np.union1d(steps_of(values), drawn), drawn)
    return bounds


def fixed_bounds(low: float, high: float) -> Bounds:
    edges = equal(low, high)
    return Bounds(np.union1d(np.linspace(low, high, 5 * _DRAWN + 1), edges), edges)


def counted(sql: str, name: str) -> str:
    """SQL of the three aggregates that `histogram_of` takes; the parameter `name` of the query is a list of all
    bounds, which DuckDB would take long to parse inside the SQL."""
    return f"histogram({sql}, ${name}), min({sql}), max({sql})"


def histogram_of(row: Sequence[Any], bounds: Bounds) -> Histogram:
    rows, low, high = row
    counts = np.array([rows.get(b, 0) for b in bounds.all.tolist()], np.int64)
    return Histogram(bounds, np.cumsum(counts), sum(rows.values()), float(low), float(high))
