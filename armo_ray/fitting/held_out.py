"""How well margins predict which response was chosen, on pairs that nothing was fitted to.

A margin is what a model gives the chosen response more than the rejected one, in log-odds.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from armo_ray.formatting.numbers import UNKNOWN

Floats = npt.NDArray[np.float64]
Groups = (
    npt.NDArray[np.integer[Any]] | None
)  # (n,) pairs of the same number are not independent; None: all are

HEAD = ("ranked by", "pairs", "accuracy %", "± SE", "log-loss", "± SE")


class Accuracy(NamedTuple):
    """Measures of the margins of some pairs; a standard error is NaN where there is one group of pairs."""

    name: str
    pairs: int
    accuracy: float  # share of positive margins; a margin of 0 counts half
    accuracy_se: float
    log_loss: float  # mean of softplus(-margin), in nats; log 2 = .693 knows nothing
    log_loss_se: float


def measure(name: str, margins: npt.NDArray[np.floating[Any]], groups: Groups = None) -> Accuracy:
    """Accuracy and log-loss of margins (n,), with standard errors that allow for groups, such as a prompt's pairs.

    Raises ValueError without pairs.
    """
    values: Floats = margins.astype(np.float64)
    accuracy, accuracy_se = mean_of((np.sign(values) + 1) / 2, groups)
    log_loss, log_loss_se = mean_of(log_losses(values), groups)
    return Accuracy(name, len(values), accuracy, accuracy_se, log_loss, log_loss_se)


def log_losses(margins: Floats) -> Floats:
    """softplus(-margin) of each pair."""
    return np.logaddexp(0, -margins)


def paired_difference(losses_a: Floats, losses_b: Floats, groups: Groups = None) -> tuple[float, float]:
    """The mean of a - b over the same pairs (n,), and its standard error. Raises ValueError without pairs."""
    return mean_of(losses_a - losses_b, groups)


def mean_of(values: Floats, groups: Groups = None) -> tuple[float, float]:
    """The mean of values (n,) and its standard error: NaN for one value, or one group.

    Without groups that is the sample deviation / sqrt(n). With groups the deviations of each are added first, as values
    that are not independent vary together (Liang and Zeger, Biometrika 73, 1986); G groups of one value give the same.
    """
    if not len(values):
        raise ValueError("no pairs")
    mean = float(values.mean())
    deviations = values - mean
    if groups is not None:
        of = np.unique(groups, return_inverse=True)[1]
        deviations = np.bincount(of, weights=deviations).astype(np.float64)
    count = len(deviations)
    if count < 2:
        return mean, float("nan")
    return mean, float(np.sqrt(np.square(deviations).sum() * count / (count - 1)) / len(values))


def table_rows(measured: Iterable[Accuracy]) -> Sequence[tuple[str, ...]]:
    """The cells of a table with the head HEAD."""
    return [
        (
            row.name,
            f"{row.pairs:,}",
            f"{100 * row.accuracy:.1f}",
            _error(100 * row.accuracy_se, 1),
            f"{row.log_loss:.4f}",
            _error(row.log_loss_se, 4),
        )
        for row in measured
    ]


def _error(value: float, digits: int) -> str:
    return UNKNOWN if np.isnan(value) else f"{value:.{digits}f}"
