"""Estimates for a whole input from a sample of runs of consecutive rows, with 95 % intervals.

Runs differ in size, so totals are ratio estimates, one per stratum: the count per row (or byte) read, times the number
of rows (or bytes) in the stratum. The variance is that of the residuals from this ratio between runs, because rows of
one run are alike (Cochran, Sampling Techniques, 6.4); it is zero if everything was read.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Z = 1.96


class Figure(NamedTuple):
    """A value and its 95 % interval; if the value is exact, both ends equal it."""

    value: float
    low: float
    high: float

    @property
    def relative(self) -> float:
        """The standard error as a fraction of the value."""
        return (self.high - self.low) / (2 * Z * self.value) if self.value else 0.0

    def times(self, factor: float, spread: float = 0.0) -> "Figure":
        """This times a factor whose logarithm has the standard deviation `spread`."""
        if not spread:
            return Figure(*(x * factor for x in self))
        value, width = self.value * factor, math.exp(Z * math.hypot(self.relative, spread))
        return Figure(value, value / width, value * width)

    def minus(self, done: float) -> "Figure":
        """What is left of a total after `done`."""
        return Figure(*(max(x - done, 0.0) for x in self))


def exact(value: float) -> Figure:
    return Figure(value, value, value)


@dataclass(frozen=True)
class Counted:
    """What was counted in the n runs of a stratum: sizes (n,), and each count (n,)."""

    kind: str
    total: float  # size of the whole stratum
    complete: bool  # whether all of it was read
    sizes: Floats
    counts: Mapping[str, Floats]

    @property
    def scale(self) -> float:
        """How many candidates each sampled one stands for."""
        return 1.0 if self.complete else self.total / max(float(self.sizes.sum()), 1e-9)


def total(strata: Sequence[Counted], name: str) -> Figure:
    """The estimated total of a count."""
    value, error = _estimate([(s, s.counts[name]) for s in strata])
    counted = sum(float(s.counts[name].sum()) for s in strata)
    return Figure(value, max(value - Z * error, counted), value + Z * error) if error else exact(value)


def ratio(strata: Sequence[Counted], name: str, by: str, extrapolated: bool = False) -> Figure | None:
    """One count divided by another; None if the other is zero.

    `extrapolated`: of other items like these, so it is not exact even if all of these were read; a single run of rows
    has no spread, though, and gives no interval.
    """
    above, below = (_estimate([(s, s.counts[n]) for s in strata])[0] for n in (name, by))
    if not below:
        return None
    value = above / below
    residuals = [(s, s.counts[name] - value * s.counts[by]) for s in strata]
    error = _estimate(residuals, extrapolated)[1] / below
    return Figure(value, value - Z * error, value + Z * error) if error else exact(value)


def share(strata: Sequence[Counted], name: str, of: str) -> Figure:
    """One count as a fraction of another, with Wilson's interval for the effective number of independent items."""
    estimate = ratio(strata, name, of)
    if estimate is None or all(s.complete for s in strata):
        return estimate or exact(0.0)
    value, n = estimate.value, sum(float(s.counts[of].sum()) for s in strata)
    variance = ((estimate.high - estimate.low) / (2 * Z)) ** 2
    n = min(n, value * (1 - value) / variance) if variance else n
    middle = (value + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(value * (1 - value) / n + Z**2 / (4 * n**2))
    return Figure(value, max(middle - half, 0.0), min(middle + half, 1.0))


def _estimate(values: Sequence[tuple[Counted, Floats]], extrapolated: bool = False) -> tuple[float, float]:
    """A total and its standard error."""
    value = variance = 0.0
    for stratum, counts in values:
        value += stratum.scale * float(counts.sum())
        n, read = len(stratum.sizes), float(stratum.sizes.sum())
        if n > 1 and (extrapolated or not stratum.complete):
            residuals = counts - counts.sum() / read * stratum.sizes
            unread = 1.0 if extrapolated else max(1 - read / stratum.total, 0.0)
            variance += stratum.scale**2 * unread * n / (n - 1) * float((residuals**2).sum())
    return value, math.sqrt(variance)
