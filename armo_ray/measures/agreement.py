"""Agreement between two sets of scores for the same candidates: in ranks, in the order of pairs, and in value."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Index = npt.NDArray[np.integer[Any]]


def agreement(reference: Mapping[str, Floats], other: Mapping[str, Floats], prompt: Index) -> dict[str, Any]:
    """Compare columns (C,) of the same names for the same candidates.

    Args:
        prompt: (C,) a number that is equal for the candidates of one prompt.

    Returns:
        `candidates`, their number; `pairs`, the number of pairs of candidates of one prompt; and in `columns`, for
        every column: `spearman`, the rank correlation (None if a column is constant); `pair_flips`, the fraction of
        the pairs not tied in the reference that change order; and `largest_difference`.
    """
    first, second = pairs_of(prompt)
    columns = {}
    for name, old in reference.items():
        new = other[name]
        before, after = np.sign(old[first] - old[second]), np.sign(new[first] - new[second])
        flips = before * after < 0
        columns[name] = {
            "spearman": spearman(old, new),
            "pair_flips": float(flips.sum() / max((before != 0).sum(), 1)),
            "largest_difference": float(np.abs(new - old).max(initial=0.0)),
        }
    return {"candidates": len(prompt), "pairs": len(first), "columns": columns}


def pairs_of(prompt: Index) -> tuple[Index, Index]:
    """The indices (P,) of the first and of the second candidate of every pair with the same prompt."""
    order = np.argsort(prompt, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(prompt[order])) + 1)
    places = [
        (group[i], group[j]) for group in groups for i, j in zip(*np.triu_indices(len(group), 1), strict=True)
    ]
    pairs = np.array(places, np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def spearman(a: Floats, b: Floats) -> float | None:
    """Rank correlation with mean ranks for ties; None if a column is constant or has fewer than two values."""
    x, y = (ranks(values) - (len(values) - 1) / 2 for values in (a, b))
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else None


def ranks(values: Floats) -> npt.NDArray[np.float64]:
    """The rank (n,) of each value, from 0; equal values have their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[place]
