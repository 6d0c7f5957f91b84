"""The held-out table: how often ways of scoring a pair are right, each fitted to pairs of other prompts.

Log-loss is of log-odds. A head on hidden states gives these by itself, and a network was trained with a factor: another
one would be fitted to margins that are too good, those of the pairs that were fitted to. Rules that have few weights or
none, of rewards that did not see the pair, have no scale of their own: a factor is fitted to the pairs not tested.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from armo_ray.errors import ConfigError
from armo_ray.fit.pairs import Pairs
from armo_ray.fitting.bradley_terry import bradley_terry, choose_penalty
from armo_ray.fitting.held_out import Accuracy, measure
from armo_ray.fitting.sampling import folds_of

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LEAST_OF_HEAD = 100  # pairs, for one weight per hidden unit with a penalty


class Split(NamedTuple):
    """Which pairs (N,) are fitted to and which are tested, and the folds of them all."""

    fitted: Bools
    tested: Bools
    folds: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]  # (N,) a number for each prompt


def split_of(pairs: Pairs, tested: Bools, folds: int, seed: int) -> Split:
    """The split of pairs, whose prompts are each on one side."""
    numbers = np.unique(np.array(pairs.prompt_ids), return_inverse=True)[1] if len(pairs) else np.empty(0)
    return Split(~tested, tested, folds_of(pairs.prompt_ids, folds, seed), numbers.astype(np.int64))


class Scored(NamedTuple):
    """The margins of all pairs by one way of scoring."""

    margins: Array  # (N,)
    factor: float | None  # to log-odds; None: to be fitted to the pairs that are not tested


def table(scored: Mapping[str, Scored], split: Split) -> list[Accuracy]:
    """Accuracy and log-loss on the tested pairs; none if there are none."""
    if not split.tested.any() or not split.fitted.any():
        return []
    groups = split.groups[split.tested]
    return [measure(name, log_odds(each, split), groups) for name, each in scored.items()]


def log_odds(scored: Scored, split: Split) -> Array:
    """Of the tested pairs, that their chosen answer is the better one."""
    factor = factor_of(scored.margins[split.fitted]) if scored.factor is None else scored.factor
    return factor * scored.margins[split.tested]


def factor_of(margins: Array) -> float:
    """The positive factor of margins (n,) with the smallest log-loss; 0 if that is none."""
    scale = float(margins.std()) or 1.0
    try:
        (factor,) = bradley_terry(lambda: [margins[:, None] / scale], 1e-6)
    except RuntimeError:
        return 1 / scale
    return max(float(factor), 0.0) / scale or 1e-12 / scale


def longer(pairs: Pairs) -> Scored:
    """The rule that the longer answer is better."""
    lengths: Array = np.log1p(pairs.tokens.astype(np.float64))
    return Scored(lengths[:, 0] - lengths[:, 1], None)


class Linear(NamedTuple):
    """A Bradley-Terry head on hidden states."""

    weights: Array  # (H,)
    relative: float  # its penalty
    losses: tuple[tuple[float, float], ...]


def fit_linear(pairs: Pairs, split: Split, folds: int) -> Linear:
    """One weight for each hidden unit, fitted to pairs. Raises ConfigError if there are too few of them."""
    count = int(split.fitted.sum())
    if count < LEAST_OF_HEAD:
        raise ConfigError(
            f"{count} pairs to fit to, after those of test prompts were set aside: a head on hidden states needs "
            f"{LEAST_OF_HEAD}; add pairs"
        )

    def folded() -> Any:
        start = 0
        own = split.folds[split.fitted]
        for block in pairs.blocks(split.fitted):
            yield block, own[start : start + len(block)]
            start += len(block)

    choice = choose_penalty(folded, folds)
    weights = bradley_terry(lambda: pairs.blocks(split.fitted), choice.penalty)
    return Linear(weights, choice.relative, choice.log_losses)
