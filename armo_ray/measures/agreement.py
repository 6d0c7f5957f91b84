"""How far two sets of scores of the same candidates agree: in ranks, in the order of pairs, in numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Index = npt.NDArray[np.integer[Any]]


def agreement(reference: Mapping[str, Floats], found: Mapping[str, Floats], prompt: Index) -> dict[str, Any]:
    """Compare columns (C,) of the same names, of the same candidates.

    Args:
        prompt: (C,) equal for the candidates of one prompt.

    Returns:
        `candidates`; `pairs`, the number of pairs of candidates of one prompt; and for every column
        `spearman`, the rank correlation (None where a column is constant), `pair_flips`, the fraction of
        the pairs in different order that the reference does not tie, and `largest_difference`.
    """
    first, second = pairs_of(prompt)
    columns = {}
    for name, old in reference.items():
        new = found[name]
        before, after = np.sign(old[first] - old[second]), np.sign(new[first] - new[second])
        flips = before * after < 0
        columns[name] = {
            "spearman": spearman(old, new),
            "pair_flips": float(flips.sum() / max((before != 0).sum(), 1)),
            "largest_difference": float(np.abs(new - old).max(initial=0.0)),
        }
    return {"candidates": len(prompt), "pairs": len(first), "columns": columns}


def pairs_of(prompt: Index) -> tuple[Index, Index]:
    """The places of both candidates of every pair with one prompt."""
    order = np.argsort(prompt, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(prompt[order])) + 1)
    found = [
        (group[i], group[j]) for group in groups for i, j in zip(*np.triu_indices(len(group), 1), strict=True)
    ]
    pairs = np.array(found, np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def spearman(a: Floats, b: Floats) -> float | None:
    """Rank correlation with mean ranks for ties; None where a column is constant or too short."""
    x, y = (_ranks(values) - (len(values) - 1) / 2 for values in (a, b))
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else None


def _ranks(values: Floats) -> npt.NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[place]
