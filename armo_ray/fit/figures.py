"""The figures of a model card, as SVG: calibration, correlation of rewards, and what the gate does."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from armo_ray.formatting.svg import Chart, heatmap, reliability

BINS = 10
CLUSTERS = 8
_ROUNDS = 20

Array = npt.NDArray[np.float64]


def calibration(log_odds: Array) -> Chart | None:
    """How often the higher score is right, by sigmoid(|log-odds|) of pairs (n,); None without pairs."""
    if not len(log_odds):
        return None
    confidence = 1 / (1 + np.exp(-np.abs(log_odds)))
    right = np.where(log_odds == 0, 0.5, log_odds > 0)
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    points = [
        (float(confidence[bins == b].mean()), float(right[bins == b].mean()), int((bins == b).sum()))
        for b in np.unique(bins)
    ]
    return reliability("How often the higher score is right, by confidence, on held-out pairs", points)


def correlations(names: Sequence[str], rewards: Array) -> Chart | None:
    """Correlation of the predicted rewards (n, K); None if there are not two of them."""
    if len(names) < 2 or len(rewards) < 2:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = np.corrcoef(rewards.T)
    values = [[None if np.isnan(x) else float(x) for x in row] for row in np.atleast_2d(matrix)]
    return heatmap("Correlation of the rewards, in percent", names, names, values)


def gate_by_cluster(names: Sequence[str], states: npt.NDArray[Any], gating: Array, seed: int) -> Chart | None:
    """Mean weight of each reward in clusters of prompts, from hidden states (P, H) and gates (P, K)."""
    if len(states) < 2:
        return None
    cluster = clusters(np.asarray(states, np.float64), min(CLUSTERS, len(states)), seed)
    sizes = np.bincount(cluster)
    order = [c for c in np.argsort(-sizes, kind="stable") if sizes[c]]
    rows = [f"{sizes[c]:,} prompts" for c in order]
    values = [[float(x) for x in gating[cluster == c].mean(axis=0)] for c in order]
    even = 1 / len(names)
    most = max(max(abs(x - even) for row in values for x in row), 1e-9)
    title = "Mean weight of each reward in percent, by cluster of prompts (blue: above an equal share)"
    return heatmap(title, rows, names, values, middle=even, most=most)


def clusters(states: Array, count: int, seed: int) -> npt.NDArray[np.int64]:
    """The cluster (n,) of each state (n, H), by k-means on standardized states."""
    deviation = states.std(axis=0)
    states = (states - states.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    rng = np.random.default_rng(seed)
    centers = states[rng.choice(len(states), count, replace=False)]
    cluster = np.zeros(len(states), np.int64)
    for _ in range(_ROUNDS):
        distance = (centers**2).sum(axis=1) - 2 * states @ centers.T
        cluster = distance.argmin(axis=1)
        own = [states[cluster == c] for c in range(count)]
        centers = np.stack([rows.mean(axis=0) if len(rows) else centers[c] for c, rows in enumerate(own)])
    return cluster
