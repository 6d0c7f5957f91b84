"""How far the scores of an output have drifted from those of an older output of the same model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from armo_ray.report.histograms import Histogram, steps_of

_DECILES = 10
_SHIFTED = (0.05, 0.5, 0.95)
# Exceeded by chance once in 1,000 times: the index follows chi-squared with 9 degrees of freedom times (1/n + 1/m)
# (Yurdakul and Naranjo 2020), the distance follows Kolmogorov's distribution.
_CHANCE_PSI, _CHANCE_KS = 27.88, 1.95


@dataclass(frozen=True)
class Shift:
    """A quantile of both outputs, and how far it moved."""

    older: float
    now: float
    shift: float


@dataclass(frozen=True)
class ColumnDrift:
    """Index, distance and quantiles of one column."""

    psi: float
    ks: float
    quantiles: dict[str, Shift]
    drifted: bool


@dataclass(frozen=True)
class PromptCounts:
    """Prompts of both outputs."""

    older: int
    now: int


@dataclass(frozen=True)
class Drift:
    """The comparison with an older output.

    max_psi, max_ks: the requested limits. chance_psi, chance_ks: what chance exceeds once in 1,000 times with this many
    prompts; None, like `prompts`, if nothing was scored. A column has drifted if it is above both.
    """

    against: str
    max_psi: float
    max_ks: float
    prompts: PromptCounts | None
    chance_psi: float | None
    chance_ks: float | None
    drifted: list[str]
    columns: dict[str, ColumnDrift]


def psi(old: Histogram, new: Histogram) -> float:
    """Population stability index: the sum of (p - q) ln(p / q) over the bins between the older output's deciles.

    Half a row is added to each bin, which keeps the index finite when a bin is empty.
    """
    edges = steps_of([old.quantile(i / _DECILES) for i in range(1, _DECILES)])

    def shares(histogram: Histogram) -> Any:
        counts = np.diff(np.r_[0.0, histogram.share(edges), 1.0]) * histogram.total
        return (counts + 0.5) / (histogram.total + 0.5 * len(counts))

    p, q = shares(new), shares(old)
    return float(((p - q) * np.log(p / q)).sum())


def ks(old: Histogram, new: Histogram) -> float:
    """Kolmogorov-Smirnov distance: the largest difference between the two distributions at the bounds of their bins."""
    return float(np.abs(old.below / old.total - new.below / new.total).max())


def drift(
    against: str,
    old: Mapping[str, Histogram],
    new: Mapping[str, Histogram],
    prompts: PromptCounts,
    limits: tuple[float, float],
) -> Drift:
    """Compare two outputs, column by column.

    Args:
        against: URI of the older output.
        old, new: histograms over the same bounds.
        prompts: the counts of both outputs; they, not the candidates, set the limits of chance, because candidates of
            a prompt are alike.
        limits: max_psi and max_ks.
    """
    noise = 1 / prompts.older + 1 / prompts.now
    chance = (_CHANCE_PSI * noise, _CHANCE_KS * noise**0.5)
    columns = {}
    for name, before in old.items():
        measured = (psi(before, new[name]), ks(before, new[name]))
        over = [value > max(limit, c) for value, limit, c in zip(measured, limits, chance, strict=True)]
        quantiles = {f"{share:g}": _shift(before, new[name], share) for share in _SHIFTED}
        columns[name] = ColumnDrift(*measured, quantiles, any(over))
    drifted = [name for name, column in columns.items() if column.drifted]
    return Drift(against, *limits, prompts, *chance, drifted, columns)


def nothing_scored(against: str, limits: tuple[float, float]) -> Drift:
    """An output without any score has drifted from every other one."""
    return Drift(against, *limits, None, None, None, ["nothing was scored"], {})


def _shift(old: Histogram, new: Histogram, share: float) -> Shift:
    older, now = old.quantile(share), new.quantile(share)
    return Shift(older, now, now - older)
