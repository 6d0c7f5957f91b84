"""Ridge regression of every label from statistics alone: penalty by folds of prompts, refit on all rows.

There is no intercept, and hidden states are not centered: heads have no bias in the checkpoint's format. The penalty
`alpha` is relative: a fit adds alpha * tr(G) / H to the diagonal of its G. One decomposition for each
fold, and for each set of labels that the same rows have, serves all penalties. H = 4,096 takes 0.8 GB beside the
statistics.
"""

import logging
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from armo_ray.errors import ConfigError
from armo_ray.fitting.statistics import Floats, Key, Statistics, flush

logger = logging.getLogger(__name__)

ALPHAS = tuple(10.0**power for power in range(-8, 3))
FLAT = 1e-4  # of R2: a smaller penalty that gains less is not worth a wider grid


class Ridge(NamedTuple):
    """Heads for K objectives, with F folds. r2 and pearson are of rows that a fit did not see."""

    names: tuple[str, ...]  # (K,)
    weights: Floats  # (K, H), of all rows
    alpha: Floats  # (K,) the penalty of least error
    r2: Floats  # (K,) 1 - squared error / squared deviation from the mean
    pearson: Floats  # (K,) of predictions and labels; NaN if the predictions are constant
    rows: Floats  # (K,) with a label
    mean: Floats  # (K,) of the labels
    deviation: Floats  # (K,) of the labels, standard
    fold_weights: Floats  # (F, K, H) of the other folds, for predictions of rows that the fit did not see


class _Moments(NamedTuple):
    """Sums over the rows with one label, in some folds."""

    cross: Floats  # (H,) of y x
    hidden: Floats  # (H,) of x
    rows: float
    labels: float  # of y
    squares: float  # of y^2


def ridge(
    stats: Statistics,
    alphas: Sequence[float] = ALPHAS,
    allow_few: bool = False,
    without: Mapping[str, str] | None = None,
) -> Ridge:
    """Fit a head for every label.

    Args:
        stats: Rows that still wait in it are multiplied first.
        alphas: Relative penalties, ascending. One is taken as it is; of several, the best must not be at an edge.
        allow_few: Fit an objective even if fewer rows have it than there are hidden units.
        without: For errors, how to do without an objective; "leave it out" of those that are not named.

    Raises:
        ConfigError: An objective has no labels, only one value, fewer rows than hidden units, or rows in only one fold;
            its hidden states predict it no better than its mean does; or its best penalty is at an edge of the grid.
            All such objectives are named at once.
    """
    ways = dict.fromkeys(stats.names, "leave it out") | dict(without or {})
    problems = {name: _label_problem(stats, k, allow_few, ways[name]) for k, name in enumerate(stats.names)}
    sound = [k for k, name in enumerate(stats.names) if not problems[name]]
    if not sound:
        raise _refusal(problems, without or {})
    flush(stats)
    grid, count = np.array(alphas, np.float64), len(stats.names)
    squared, fits = np.zeros((count, len(grid))), np.zeros((count, len(grid), 3))
    paths = np.zeros((stats.folds, count, stats.size))
    weights, best, r2 = np.zeros((count, stats.size)), np.zeros(count, np.int64), np.zeros(count)
    for support, objectives in _supports(stats, sound).items():
        solved = []
        for fold in range(stats.folds):
            own = _gram(stats, support, [fold])
            solutions = _solutions(stats, support, objectives, _others(stats, fold), grid)
            for k, path in zip(objectives, solutions, strict=True):
                errors, sums = _errors(path, own, _moments(stats, k, [fold]))
                squared[k], fits[k] = squared[k] + errors, fits[k] + sums
            solved.append(solutions)
        for place, k in enumerate(objectives):
            r2s = _r2(stats, k, squared[k])
            best[k], r2[k] = int(np.argmax(r2s)), float(r2s.max())
            problems[stats.names[k]] = _penalty_problem(grid, r2s, ways[stats.names[k]])
            paths[:, k] = [solutions[place][best[k]] for solutions in solved]
        chosen = grid[best[list(objectives)]]
        final = _solutions(stats, support, objectives, list(range(stats.folds)), chosen)
        for place, k in enumerate(objectives):
            weights[k] = final[place][place]
        logger.info("fitted %s", ", ".join(f"{stats.names[k]} (R2 {r2[k]:.4f})" for k in objectives))
    if any(problems.values()):
        raise _refusal(problems, without or {})
    return _result(stats, grid, best, r2, weights, paths, fits)


def _label_problem(stats: Statistics, k: int, allow_few: bool, way: str) -> str:
    """Why nothing can be learned of a label, which is known before anything is fitted; empty if it can."""
    rows = _rows_of(stats, k)
    if not rows.sum():
        return f"none of the {stats.rows} rows has a label: {way}"
    if stats.low[k] == stats.high[k]:
        return f"all {rows.sum()} labels are {stats.low[k]:g}: there is nothing to learn; {way}"
    if rows.sum() < stats.size and not allow_few:
        return (
            f"{rows.sum()} rows with a label, fewer than the {stats.size} hidden units: label more rows, or give "
            f"--allow-few"
        )
    if (rows > 0).sum() < 2:
        return "its rows are all in one fold of prompts: label more prompts"
    return ""


def _r2(stats: Statistics, k: int, errors: Floats) -> Floats:
    """R2 (A,) of each penalty."""
    every = _moments(stats, k, list(range(stats.folds)))
    result: Floats = 1 - errors / (every.squares - every.labels**2 / every.rows)
    return result


def _penalty_problem(grid: Floats, r2: Floats, way: str) -> str:
    """Why the best of the penalties is of no use; empty if it is."""
    best = int(np.argmax(r2))
    if r2[best] <= 0:
        return (
            f"cross-validated R2 is {r2[best]:.4f}: the hidden states predict its labels no better than their mean "
            f"does; check the labels, add rows or {way}"
        )
    if len(grid) > 1 and (best == len(grid) - 1 or (best == 0 and r2[0] - r2[1] > FLAT)):
        edge, more = ("largest", "larger") if best else ("smallest", "smaller")
        return (
            f"the best penalty is {grid[best]:g}, the {edge} that was tried (R2 {r2[best]:.4f}): try {more} ones, "
            f"check the labels or {way}"
        )
    return ""


def _refusal(problems: Mapping[str, str], without: Mapping[str, str]) -> ConfigError:
    """All that is wrong, and the objectives that can be fitted."""
    lines = [f"objective {name}: {problem}" for name, problem in problems.items() if problem]
    good = [name for name, problem in problems.items() if not problem and name not in without]
    if good:
        lines.append(f"the others can be fitted: --objective {shlex.join(good)}")
    return ConfigError("\n".join(lines))


def _supports(
    stats: Statistics, objectives: Sequence[int]
) -> dict[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """The objectives of each support, which is the sets of labels of the groups that have their rows."""
    sets = sorted({key[0] for key in stats.groups})
    supports: dict[tuple[tuple[int, ...], ...], tuple[int, ...]] = {}
    for k in objectives:
        support = tuple(labels for labels in sets if k in labels)
        supports[support] = (*supports.get(support, ()), k)
    return supports


def _keys(stats: Statistics, support: Sequence[tuple[int, ...]], folds: Sequence[int]) -> list[Key]:
    return [(labels, fold) for fold in folds for labels in support if (labels, fold) in stats.groups]


def _others(stats: Statistics, fold: int) -> list[int]:
    return [other for other in range(stats.folds) if other != fold]


def _gram(stats: Statistics, support: Sequence[tuple[int, ...]], folds: Sequence[int]) -> Floats:
    total = np.zeros((stats.size, stats.size))
    for key in _keys(stats, support, folds):
        total += stats.groups[key].gram
    return total


def _moments(stats: Statistics, k: int, folds: Sequence[int]) -> _Moments:
    groups = [stats.groups[key] for key in sorted(stats.groups) if k in key[0] and key[1] in folds]
    cross = np.sum([sums.cross[[k, -1]] for sums in groups], axis=0) if groups else np.zeros((2, stats.size))
    numbers = [(sums.rows, sums.labels[k], sums.squares[k]) for sums in groups]
    return _Moments(*cross, *map(float, np.sum(numbers, axis=0) if numbers else (0, 0, 0)))


def _rows_of(stats: Statistics, k: int) -> npt.NDArray[np.int64]:
    """The rows (F,) with label k in each fold, also those that wait."""
    rows: npt.NDArray[np.int64] = np.zeros(stats.folds, np.int64)
    for (labels, fold), sums in stats.groups.items():
        rows[fold] += (sums.rows + sums.count) if k in labels else 0
    return rows


def _solutions(
    stats: Statistics,
    support: Sequence[tuple[int, ...]],
    objectives: Sequence[int],
    folds: Sequence[int],
    alphas: Floats,
) -> list[Floats]:
    """For each objective the weights (A, H) of every penalty, fitted on the given folds."""
    gram = _gram(stats, support, folds)
    unit = np.trace(gram) / stats.size
    values, vectors = np.linalg.eigh(gram)
    shrunk = np.maximum(values, 0.0) + alphas[:, None] * unit  # (A, H)
    return [((vectors.T @ _moments(stats, k, folds).cross) / shrunk) @ vectors.T for k in objectives]


def _errors(path: Floats, gram: Floats, of: _Moments) -> tuple[Floats, Floats]:
    """Of weights (A, H) on other rows: squared errors (A,), and sums (A, 3) of p, p^2 and p y of the predictions p."""
    squares, products = np.einsum("ah,ah->a", path @ gram, path), path @ of.cross
    return of.squares - 2 * products + squares, np.stack([path @ of.hidden, squares, products], axis=1)


def _result(
    stats: Statistics,
    grid: Floats,
    best: npt.NDArray[np.int64],
    r2: Floats,
    weights: Floats,
    paths: Floats,
    fits: Floats,
) -> Ridge:
    count = len(stats.names)
    moments = [_moments(stats, k, list(range(stats.folds))) for k in range(count)]
    rows, labels, squares = np.array([(m.rows, m.labels, m.squares) for m in moments]).T
    place = np.arange(count)
    p, pp, py = fits[place, best].T
    with np.errstate(divide="ignore", invalid="ignore"):
        pearson = (rows * py - p * labels) / np.sqrt((rows * pp - p * p) * (rows * squares - labels**2))
    return Ridge(
        names=stats.names,
        weights=weights,
        alpha=grid[best],
        r2=r2,
        pearson=pearson,
        rows=rows,
        mean=labels / rows,
        deviation=np.sqrt(squares / rows - (labels / rows) ** 2),
        fold_weights=paths,
    )
