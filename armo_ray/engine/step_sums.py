"""Rewards of steps that are sums over the tokens of a response, up to the end of each step."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def accumulated(
    tokens: Sequence[Floats], ends: Sequence[Sequence[int]]
) -> tuple[Floats, Floats, tuple[Floats, ...]]:
    """Score (C,), rewards (C, 4) in the order of STEP_REWARDS, and the rewards of the steps of C candidates.

    Args:
        tokens: a number for each token of a response that is read.
        ends: how many of them are summed for each step.
    """
    steps = tuple(
        np.cumsum(own, dtype=np.float64)[np.array(counts) - 1].astype(np.float32)
        for own, counts in zip(tokens, ends, strict=True)
    )
    reduced = [(own.mean(), own.min(), own.prod(), own[-1]) for own in steps]
    rewards = np.array(reduced, np.float32).reshape(-1, 4)
    return rewards[:, 0], rewards, steps
