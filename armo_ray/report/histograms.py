"""Counts of a column's values between bounds, from which its distribution and quantiles are told.

The bounds are quantiles of a sample, so that every bin holds about 1/200 of the rows however the values lie, and 40
equal bins to draw. A value that many rows share has a bin of its own. A quantile is then off by less than a bin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_LEVELS, _DRAWN = 200, 40
_TAIL = 0.005  # of the rows, on each side, that the drawn bins leave out


@dataclass(frozen=True)
class Bounds:
    """Where the bins of a column end; `drawn` are some of them."""

    all: Floats
    drawn: Floats


@dataclass(frozen=True)
class Histogram:
    """Rows up to each bound, of `total`, between the least and the largest value."""

    bounds: Bounds
    below: npt.NDArray[np.int64]  # rows with at most the value of each bound
    total: int
    low: float
    high: float

    def share(self, at: Floats) -> Floats:
        """The share of rows with at most these values."""
        inside = (self.bounds.all > self.low) & (self.bounds.all < self.high)
        least = self.below[self.bounds.all == self.low]
        start = float(least[0]) if len(least) else 0.0
        places = np.r_[self.low, self.bounds.all[inside], self.high]
        counts = np.r_[start, self.below[inside], self.total]
        found = np.interp(at, places, counts) / self.total
        return np.asarray(np.where(at < self.low, 0.0, np.where(at >= self.high, 1.0, found)), np.float64)

    def quantile(self, share: float) -> float:
        rows = share * self.total
        i = int(np.searchsorted(self.below, rows))
        upper = min(self.bounds.all[i], self.high) if i < len(self.below) else self.high
        lower = max(self.bounds.all[i - 1], self.low) if i else self.low
        before = self.below[i - 1] if i else 0
        inside = (self.below[i] if i < len(self.below) else self.total) - before
        return float(lower + (upper - lower) * (rows - before) / inside) if inside else float(upper)

    def to_json(self) -> dict[str, Any]:
        """The drawn bins, each with its edges, and the rows that lie beside them."""
        edges = self.bounds.drawn
        at = self.below[np.searchsorted(self.bounds.all, edges)]
        return {
            "edges": edges.tolist(),
            "counts": np.diff(at).tolist(),
            "below": int(at[0]),
            "above": int(self.total - at[-1]),
        }

    def quantiles(self) -> dict[str, float]:
        return {f"{share:g}": self.quantile(share) for share in QUANTILES}


def steps_of(values: Sequence[float]) -> Floats:
    """Bounds at ordered values; one that comes again also ends a bin just below it."""
    points, counts = np.unique(np.array(values, np.float64), return_counts=True)
    return np.union1d(points, np.nextafter(points[counts > 1], -np.inf))


def equal(low: float, high: float, whole: bool = False) -> Floats:
    """The edges of equal bins that hold all from low to high; of whole numbers, each bin holds as many of them."""
    if whole:
        width = max(1, int(np.ceil((high - low + 1) / _DRAWN)))
        return np.asarray(np.arange(low - 0.5, high + width, width), np.float64)
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _DRAWN + 1)
    edges[0] = np.nextafter(low, -np.inf)  # a bin holds its upper edge, not its lower one
    return edges


def find_bounds(
    con: duckdb.DuckDBPyConnection, relation: str, columns: Mapping[str, str], whole: Sequence[str] = ()
) -> dict[str, Bounds]:
    """Bounds for columns (SQL by name) from the rows of a sample; `whole` are those of whole numbers."""
    levels = [i / _LEVELS for i in range(_LEVELS + 1)]
    selects = ", ".join(f"quantile_disc({sql}, {levels})" for sql in columns.values())
    row = con.execute(f"SELECT {selects} FROM {relation}").fetchall()[0]
    found = {}
    for name, values in zip(columns, row, strict=True):
        tail = round(_TAIL * _LEVELS)
        drawn = equal(values[tail], values[-1 - tail], name in whole)
        found[name] = Bounds(np.union1d(steps_of(values), drawn), drawn)
    return found


def fixed_bounds(low: float, high: float) -> Bounds:
    edges = equal(low, high)
    return Bounds(np.union1d(np.linspace(low, high, 5 * _DRAWN + 1), edges), edges)


def counted(sql: str, bounds: Bounds) -> str:
    """SQL of three aggregates that `histogram_of` reads."""
    ends = ", ".join(f"{bound:.16e}" for bound in bounds.all.tolist())  # with an exponent: DOUBLE, no DECIMAL
    return f"histogram({sql}, [{ends}]), min({sql}), max({sql})"


def histogram_of(row: Sequence[Any], bounds: Bounds) -> Histogram:
    found, low, high = row
    counts = np.array([found.get(b, 0) for b in bounds.all.tolist()], np.int64)
    return Histogram(bounds, np.cumsum(counts), sum(found.values()), float(low), float(high))
