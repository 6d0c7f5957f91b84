"""How far the numbers of an output moved away from those of an older one of the same model."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from armo_ray.report.histograms import Histogram, steps_of

_DECILES = 10
_SHIFTED = (0.05, 0.5, 0.95)
# What chance alone exceeds once in 1,000 times: the index is distributed as chi-squared with 9 degrees of freedom
# times (1/n + 1/m) (Yurdakul and Naranjo 2020), the distance as Kolmogorov says.
_CHANCE_PSI, _CHANCE_KS = 27.88, 1.95


def psi(old: Histogram, new: Histogram) -> float:
    """Population stability index: the sum of (p - q) ln(p / q) over the bins that the older output's deciles make.

    Half a row more in each bin keeps it finite where one is empty.
    """
    edges = steps_of([old.quantile(i / _DECILES) for i in range(1, _DECILES)])

    def shares(found: Histogram) -> Any:
        counts = np.diff(np.r_[0.0, found.share(edges), 1.0]) * found.total
        return (counts + 0.5) / (found.total + 0.5 * len(counts))

    p, q = shares(new), shares(old)
    return float(((p - q) * np.log(p / q)).sum())


def ks(old: Histogram, new: Histogram) -> float:
    """Kolmogorov-Smirnov: how far the two distributions lie apart at most, at the bounds of the bins they share."""
    return float(np.abs(old.below / old.total - new.below / new.total).max())


def drift(
    old: Mapping[str, Histogram],
    new: Mapping[str, Histogram],
    prompts: tuple[int, int],
    limits: tuple[float, float],
) -> dict[str, Any]:
    """Of every column: index, distance, how far quantiles moved, and whether it drifted.

    Args:
        old, new: histograms over the same bounds.
        prompts: of both outputs; what chance does is judged by them, as candidates of one are alike.
        limits: of index and distance.
    """
    noise = 1 / prompts[0] + 1 / prompts[1]
    chance = (_CHANCE_PSI * noise, _CHANCE_KS * noise**0.5)
    columns = {}
    for name, before in old.items():
        found = (psi(before, new[name]), ks(before, new[name]))
        shifts = {f"{s:g}": (before.quantile(s), new[name].quantile(s)) for s in _SHIFTED}
        over = [value > max(limit, c) for value, limit, c in zip(found, limits, chance, strict=True)]
        columns[name] = {
            "psi": found[0],
            "ks": found[1],
            "quantiles": {s: {"older": a, "now": b, "shift": b - a} for s, (a, b) in shifts.items()},
            "drifted": any(over),
        }
    return {
        "prompts": {"older": prompts[0], "now": prompts[1]},
        "chance_psi": chance[0],
        "chance_ks": chance[1],
        "drifted": [name for name, row in columns.items() if row["drifted"]],
        "columns": columns,
    }
