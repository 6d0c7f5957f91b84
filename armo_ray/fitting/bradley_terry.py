"""Weights for which differences between chosen and rejected responses have the largest likelihood.

A pair with difference d (chosen less rejected) has the margin z = w·d, and chosen wins with probability sigmoid(z)
(Bradley and Terry, Biometrika 39, 1952). The weights minimize `sum softplus(-z) + penalty/2 |w|²`, which is convex:
Newton's method finds them to the last digits in about seven passes over the differences, each of n·d² operations.
There is no intercept, because a pair and its reverse must have opposite margins.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from armo_ray.errors import ConfigError

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Blocks = Callable[[], Iterable[npt.NDArray[np.floating[Any]]]]  # gives the same (n, d) differences each time
FoldedBlocks = Callable[[], Iterable[tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.integer[Any]]]]]

RELATIVE = tuple(10.0**exponent for exponent in range(1, -7, -1))  # penalties, relative to `scale_of`
_PASSES = 100
_NO_BEST = (
    "no weights fit the pairs best: some contradict none of them, and larger ones always fit better. Give more pairs, "
    "or a penalty greater than 0"
)
_NEGLIGIBLE = 1e-5  # nats a pair
_TOLERANCE = 1e-9  # of margins, relative to the largest; Newton's next step would be about its square


class Choice(NamedTuple):
    """The penalty with the smallest loss on folds that were left out."""

    relative: float  # penalty / scale_of the differences
    penalty: float  # for all differences
    log_losses: tuple[tuple[float, float], ...]  # relative penalty and mean log-loss of left out pairs


class _Pass(NamedTuple):
    """Sums over all differences at some weights."""

    loss: float  # with the penalty
    gradient: Floats  # (d,)
    curvature: Floats  # (d, d)
    moved: float  # the largest change of a margin by the step
    largest: float  # the largest margin, as an absolute number
    ordered: bool  # whether no margin is negative, and some is positive


def bradley_terry(
    blocks: Blocks, penalty: float, start: Floats | None = None, tolerance: float = _TOLERANCE
) -> Floats:
    """The weights (d,) that fit pairs best.

    Args:
        blocks: Returns the differences (n, d), chosen less rejected, in blocks; called once for each pass.
        penalty: Of |w|²/2, relative to the sum over all pairs; `choose_penalty` finds one. 0: none.
        start: Weights to begin with, (d,); default 0, and always so without a penalty.
        tolerance: The largest change of a margin, relative to the largest margin, at which the search ends.

    Raises:
        ConfigError: There are no pairs, a difference is not finite, or the penalty is 0 and no weights are best,
            because some weights contradict no pair: larger ones always fit better.
    """
    if not penalty >= 0:
        raise ValueError(f"penalty {penalty}: must not be negative")
    if penalty == 0:
        start = None  # the curvature at 0 says which weights the pairs can tell at all
    weights = np.zeros(_width(blocks)) if start is None else np.asarray(start, np.float64)
    now = _pass(blocks, weights, np.zeros_like(weights), penalty)
    rank = np.linalg.matrix_rank(now.curvature) if penalty == 0 else 0
    for _ in range(_PASSES):
        if penalty == 0 and (now.ordered or np.linalg.matrix_rank(now.curvature) < rank):
            raise ConfigError(_NO_BEST)
        step = -_solved(now.curvature, now.gradient, penalty)
        weights, now = _descended(blocks, weights, step, penalty, now)
        if now.moved <= tolerance * max(1.0, now.largest):
            return weights
    raise RuntimeError(
        f"the weights did not converge in {_PASSES} passes; the last moved a margin by {now.moved:g}"
    )


def choose_penalty(
    blocks: FoldedBlocks, folds: int, relative: Sequence[float] = RELATIVE, tolerance: float = 1e-4
) -> Choice:
    """The penalty for which weights fitted without a fold predict that fold best, over all folds.

    Begins with the largest penalty, and stops when two smaller ones in a row predict no better, by 1e-5 in log-loss.

    Args:
        blocks: Returns blocks of differences (n, d) and the fold (n,) of each, from 0 to `folds` less 1. Pairs of a
            prompt must share a fold.
        relative: Penalties to try, relative to `scale_of` the differences that are fitted.
        tolerance: As of `bradley_terry`.

    Raises:
        ConfigError: A fold has no pairs, or a difference is not finite.
    """
    counts = sum((np.bincount(fold, minlength=folds) for _, fold in blocks()), np.zeros(folds, np.int64))
    if not counts.all():
        raise ConfigError(
            f"{int(counts.sum())} pairs are too few for {folds} folds: fold {int(counts.argmin())} has none"
        )
    starts: list[Floats | None] = [None] * folds
    scales = [scale_of(_without(blocks, fold)) for fold in range(folds)]
    losses: list[tuple[float, float]] = []
    best, since = (0.0, np.inf), 0  # and how many smaller penalties were tried since
    for value in sorted(relative, reverse=True):
        total = 0.0
        for fold in range(folds):
            penalty = value * scales[fold]
            starts[fold] = weights = bradley_terry(_without(blocks, fold), penalty, starts[fold], tolerance)
            total += sum(float(np.logaddexp(0, -(d @ weights)).sum()) for d in _only(blocks, fold)())
        losses.append((value, total / int(counts.sum())))
        logger.info("penalty %g: log-loss %.4f of the folds that were left out", *losses[-1])
        if losses[-1][1] < best[1] - _NEGLIGIBLE:
            best, since = losses[-1], 0
        else:
            since += 1
        if since == 2:
            break
    chosen = best[0]
    return Choice(chosen, chosen * scale_of(lambda: (d for d, _ in blocks())), tuple(losses))


def scale_of(blocks: Blocks) -> float:
    """The mean curvature of the loss along a weight, at weights of 0: the sum of squares / 4d; 1 if all are 0."""
    total, width = 0.0, 1
    for block in blocks():
        total, width = total + float(np.square(block, dtype=np.float64).sum()), block.shape[1]
    return total / (4 * width) or 1.0


def _width(blocks: Blocks) -> int:
    for block in blocks():
        return int(block.shape[1])
    raise ConfigError("there are no pairs to fit")


def _without(blocks: FoldedBlocks, fold: int) -> Blocks:
    return lambda: (d[of != fold] for d, of in blocks())


def _only(blocks: FoldedBlocks, fold: int) -> Blocks:
    return lambda: (d[of == fold] for d, of in blocks())


def _pass(blocks: Blocks, weights: Floats, step: Floats, penalty: float) -> _Pass:
    """Sums at `weights`, to which `step` led."""
    loss, gradient = penalty / 2 * float(weights @ weights), penalty * weights
    curvature = np.zeros((len(weights), len(weights)))
    moved, least, most = 0.0, np.inf, -np.inf
    for block in blocks():
        if not len(block):
            continue
        differences: Floats = block.astype(np.float64)
        if not np.isfinite(differences).all():
            raise ConfigError("a difference between the responses of a pair is not a finite number")
        margins = differences @ weights
        wrong = np.exp(-np.logaddexp(0, margins))  # the probability of the other order
        loss += float(np.logaddexp(0, -margins).sum())
        gradient = gradient - wrong @ differences
        scaled = differences * np.sqrt(wrong * (1 - wrong))[:, None]
        curvature += scaled.T @ scaled
        moved = max(moved, float(np.abs(differences @ step).max()))
        least, most = min(least, float(margins.min())), max(most, float(margins.max()))
    return _Pass(loss, gradient, curvature, moved, max(most, -least, 0.0), least >= 0 and most > 0)


def _solved(curvature: Floats, gradient: Floats, penalty: float) -> Floats:
    if penalty == 0:  # the curvature may be singular: the smallest of the steps
        return np.linalg.lstsq(curvature, gradient, rcond=None)[0].astype(np.float64)
    curvature[np.diag_indices_from(curvature)] += penalty
    return np.linalg.solve(curvature, gradient).astype(np.float64)


def _descended(
    blocks: Blocks, weights: Floats, step: Floats, penalty: float, before: _Pass
) -> tuple[Floats, _Pass]:
    """The weights after the step, halved until the loss does not rise; and the sums there."""
    for _ in range(50):
        now = _pass(blocks, weights + step, step, penalty)
        if now.loss <= before.loss * (1 + 1e-13):  # the last digits of a sum are noise
            return weights + step, now
        step = step / 2
    return weights, before._replace(moved=0.0)
