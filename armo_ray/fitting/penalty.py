"""Rewards without a rank correlation with verbosity: a multiple of the verbosity is taken from each.

The rank correlation of r - c v with v never rises with c, so bisection finds the c at which it is 0.
"""

from collections.abc import Sequence

import numpy as np

from armo_ray.errors import ConfigError
from armo_ray.fitting.statistics import Floats
from armo_ray.measures.agreement import ranks

TOLERANCE = 1e-4  # of the rank correlation
_STEPS = 60  # halvings, which leave no other number between


def penalties(rewards: Floats, verbosity: Floats, limit: float, names: Sequence[str]) -> Floats:
    """The smallest multiple (K,) of the verbosity without which each reward has no rank correlation with it.

    It is 0 for a reward whose correlation is not positive, or that is constant. The correlation that remains is at most
    TOLERANCE, or that next to 0 where few rows, or equal numbers, let it jump.

    Args:
        rewards: (n, K) of a sample of rows.
        verbosity: (n,) of the same rows, on the scale on which the head is to subtract it.
        limit: The largest multiple.
        names: (K,) of the rewards, for errors.

    Raises:
        ConfigError: The limit leaves a positive correlation, or the verbosity is constant.
    """
    of = _centered_ranks(verbosity)
    if not of.any():
        raise ConfigError("verbosity is the same in all rows of the sample: take --verbosity none")
    return np.array([_penalty(rewards[:, k], verbosity, of, limit, name) for k, name in enumerate(names)])


def transform_of(penalty: Floats, verbosity: int | None) -> Floats:
    """The matrix T (K, K) of the checkpoint's format: the score weights rewards @ T.

    The reward `verbosity`, a place among the K, only lowers the others, and counts for nothing itself; None: T changes
    nothing.
    """
    transform = np.eye(len(penalty))
    if verbosity is not None:
        transform[verbosity] = -penalty
        transform[verbosity, verbosity] = 0.0
    return transform


def correlation(rewards: Floats, verbosity: Floats) -> Floats:
    """The rank correlation (K,) of each reward with verbosity; 0 for a constant."""
    of = _centered_ranks(verbosity)
    return np.array([_correlation(reward, of) for reward in rewards.T])


def _penalty(reward: Floats, verbosity: Floats, of: Floats, limit: float, name: str) -> float:
    if _correlation(reward, of) <= 0:
        return 0.0
    if (left := _correlation(reward - limit * verbosity, of)) > TOLERANCE:
        raise ConfigError(
            f"objective {name}: its rank correlation with verbosity is {_correlation(reward, of):.3f}, and still "
            f"{left:.3f} with a penalty of {limit:g}: raise --max-penalty, or take --verbosity none"
        )
    low, high = 0.0, limit
    for _ in range(_STEPS):
        middle = (low + high) / 2
        now = _correlation(reward - middle * verbosity, of)
        if abs(now) <= TOLERANCE:
            return middle
        low, high = (middle, high) if now > 0 else (low, middle)
    ends = (low, high)
    return min(ends, key=lambda end: abs(_correlation(reward - end * verbosity, of)))


def _centered_ranks(values: Floats) -> Floats:
    return ranks(values) - (len(values) - 1) / 2


def _correlation(values: Floats, of: Floats) -> float:
    own = _centered_ranks(values)
    scale = float(np.sqrt((own @ own) * (of @ of)))
    return float(own @ of) / scale if scale else 0.0
