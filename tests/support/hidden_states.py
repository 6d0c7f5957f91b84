"""Random hidden states with labels that a linear head explains, as a backbone's are: a large mean, unequal spreads."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from armo_ray.fitting.sampling import folds_of


class Rows(NamedTuple):
    """Rows with labels of K objectives."""

    last: npt.NDArray[np.float32]  # (n, H)
    labels: npt.NDArray[np.float64]  # (n, K), NaN where missing
    fold: npt.NDArray[np.int64]  # (n,)
    truth: npt.NDArray[np.float64]  # (n, K) labels without noise


def rows_of(
    count: int, size: int, objectives: int = 3, noise: float = 1.0, missing: str = "none", seed: int = 0
) -> Rows:
    """Rows of which some lack labels: `few` combinations are labelled, fewer than objectives, or `many`."""
    rng = np.random.default_rng(seed)
    weights = np.random.default_rng(99).standard_normal((objectives, size))  # of all seeds
    last = rng.standard_normal((count, size)) * np.geomspace(1, 0.05, size) + 3 * np.cos(np.arange(size))
    last = last.astype(np.float32)
    truth = last.astype(np.float64) @ weights.T / np.sqrt(size)
    labels = truth + noise * rng.standard_normal(truth.shape)
    if missing == "few":
        labels[rng.random(count) < 0.4, 0] = np.nan
    elif missing == "many":
        labels[rng.random(labels.shape) < 0.3] = np.nan
    fold = folds_of([str(prompt) for prompt in np.arange(count) // 2], 5, seed)
    return Rows(last, labels, fold, truth)
