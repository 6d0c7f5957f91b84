"""How far the scores of outputs have drifted from those of older outputs of the same model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from armo_ray.formatting.numbers import number, signed
from armo_ray.formatting.tables import text_table
from armo_ray.report.histograms import Histogram, steps_of

_DECILES = 10
_MOST_VALUES = 12  # in the table for a terminal
_NOTHING = "nothing was scored"
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
class MeanScore:
    """The mean score of both, and the shift in standard deviations of the older scores; None if these are all equal."""

    older: float
    now: float
    shift_in_sd: float | None


class Side(NamedTuple):
    """What is compared, the older or the new: its prompts, and mean and standard deviation of its scores."""

    prompts: int
    mean: float
    sd: float


@dataclass(frozen=True)
class Worst:
    """The column with the largest index or distance, and the limit that it is held against."""

    column: str
    value: float
    limit: float


@dataclass(frozen=True)
class PromptCounts:
    """Prompts of both outputs."""

    older: int
    now: int


@dataclass(frozen=True)
class ValueDrift:
    """The drift of the candidates with one value of a column; what a side without any leaves unknown is None."""

    value: str | None
    prompts: PromptCounts
    mean_score: MeanScore | None
    psi: Worst | None
    ks: Worst | None
    drifted: list[str]
    verdict: str


@dataclass(frozen=True)
class DriftPer:
    """The drift of every value of a column, the worst first."""

    column: str
    values: list[ValueDrift]


@dataclass(frozen=True)
class Drift:
    """The comparison with older outputs.

    max_psi, max_ks: the requested limits. chance_psi, chance_ks: what chance exceeds once in 1,000 times with this many
    prompts; None, like `prompts` and `mean_score`, if nothing was scored. A column has drifted if it is above both.
    verdict: "no drift", "drift in" columns, "too little data" if chance is above a requested limit and nothing drifted,
    or "nothing was scored". per: None without --per.
    """

    against: str
    max_psi: float
    max_ks: float
    prompts: PromptCounts | None
    chance_psi: float | None
    chance_ks: float | None
    drifted: list[str]
    columns: dict[str, ColumnDrift]
    mean_score: MeanScore | None
    verdict: str
    per: DriftPer | None = None

    def worst(self) -> tuple[Worst, Worst]:
        """The columns with the largest PSI and with the largest KS. Raises ValueError if nothing was scored."""
        index = max(self.columns, key=lambda name: self.columns[name].psi)
        distance = max(self.columns, key=lambda name: self.columns[name].ks)
        return (
            Worst(index, self.columns[index].psi, max(self.max_psi, self.chance_psi or 0.0)),
            Worst(distance, self.columns[distance].ks, max(self.max_ks, self.chance_ks or 0.0)),
        )


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
    sides: tuple[Side, Side],
    limits: tuple[float, float],
) -> Drift:
    """Compare older with new outputs, column by column.

    Args:
        against: URIs of the older outputs.
        old, new: histograms over the same bounds.
        sides: the older and the new; their prompts, not their candidates, set the limits of chance, because
            candidates of a prompt are alike.
        limits: max_psi and max_ks.
    """
    before, after = sides
    noise = 1 / before.prompts + 1 / after.prompts
    chance = (_CHANCE_PSI * noise, _CHANCE_KS * noise**0.5)
    columns = {}
    for name, earlier in old.items():
        measured = (psi(earlier, new[name]), ks(earlier, new[name]))
        over = [value > max(limit, c) for value, limit, c in zip(measured, limits, chance, strict=True)]
        quantiles = {f"{share:g}": _shift(earlier, new[name], share) for share in _SHIFTED}
        columns[name] = ColumnDrift(*measured, quantiles, any(over))
    drifted = [name for name, column in columns.items() if column.drifted]
    moved = (after.mean - before.mean) / before.sd if before.sd else None
    return Drift(
        against,
        *limits,
        PromptCounts(before.prompts, after.prompts),
        *chance,
        drifted,
        columns,
        MeanScore(before.mean, after.mean, moved),
        _verdict(drifted, limits, chance),
    )


def _verdict(drifted: list[str], limits: tuple[float, float], chance: tuple[float, float]) -> str:
    if drifted:
        return f"drift in {', '.join(drifted)}"
    enough = all(by_chance <= limit for by_chance, limit in zip(chance, limits, strict=True))
    return "no drift" if enough else "too little data"


def nothing_scored(against: str, limits: tuple[float, float]) -> Drift:
    """An output without any score has drifted from every other one."""
    return Drift(against, *limits, None, None, None, [_NOTHING], {}, None, _NOTHING)


def told(drift: Drift) -> list[str]:
    """Three lines for a terminal: the mean score, the worst columns, and the verdict."""
    mean = drift.mean_score
    if mean is None:
        return ["mean score: unknown", "largest drift: unknown", f"verdict: {drift.verdict}"]
    moved = "" if mean.shift_in_sd is None else f", {signed(mean.shift_in_sd)} SD of the older scores"
    index, distance = drift.worst()
    return [
        f"mean score: from {number(mean.older)} to {number(mean.now)}{moved}",
        f"largest drift: PSI {_worst(index)}, KS {_worst(distance)}",
        f"verdict: {drift.verdict}",
    ]


def _worst(worst: Worst) -> str:
    return f"{number(worst.value)} of {worst.column} (limit {number(worst.limit)})"


def _shift(old: Histogram, new: Histogram, share: float) -> Shift:
    older, now = old.quantile(share), new.quantile(share)
    return Shift(older, now, now - older)


def per_value(drift: Drift) -> list[str]:
    """A table for a terminal: the values of a column that drifted most; empty without --per."""
    if drift.per is None:
        return []
    head = [drift.per.column, "prompts", "mean, SD", "PSI", "KS", "drift"]
    rows = [
        [
            str(own.value),
            number(own.prompts.now),
            signed(own.mean_score.shift_in_sd if own.mean_score else None),
            number(own.psi.value if own.psi else None),
            number(own.ks.value if own.ks else None),
            own.verdict,
        ]
        for own in drift.per.values[:_MOST_VALUES]
    ]
    return ["", text_table(head, rows)]
