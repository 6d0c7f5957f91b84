"""Penalties on verbosity: no rank correlation is left, and none is invented."""

import numpy as np
import pytest

from armo_ray.errors import ConfigError
from armo_ray.fitting.penalty import correlation, penalties, transform_of

NAMES = ("long", "slightly long", "short")


def sample(count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    verbosity = np.log1p(rng.geometric(0.01, count)).astype(np.float64)  # with equal numbers
    parts = [rng.standard_normal(count) + slope * verbosity for slope in (1.0, 0.02, -0.3)]
    return np.stack(parts, axis=1), verbosity


def test_no_rank_correlation_with_verbosity_is_left() -> None:
    rewards, verbosity = sample()
    penalty = penalties(rewards, verbosity, 2.0, NAMES)
    left = correlation(rewards - penalty * verbosity[:, None], verbosity)
    assert (correlation(rewards, verbosity)[:2] > 0.01).all()
    assert np.abs(left[:2]).max() <= 0.001
    assert penalty[0] == pytest.approx(1.0, abs=0.05)


def test_a_reward_that_does_not_rise_with_verbosity_has_no_penalty() -> None:
    rewards, verbosity = sample()
    rewards[:, 1] = 3.0
    assert penalties(rewards, verbosity, 2.0, NAMES)[1:].tolist() == [0.0, 0.0]


def test_the_transform_takes_the_penalty_and_leaves_out_verbosity_itself() -> None:
    rewards, verbosity = sample()
    rewards = np.column_stack([rewards, verbosity])
    penalty = penalties(rewards, verbosity, 2.0, (*NAMES, "verbosity"))
    transformed = rewards @ transform_of(penalty, 3)
    expected = rewards[:, :3] - penalty[:3] * verbosity[:, None]
    np.testing.assert_allclose(transformed[:, :3], expected, rtol=1e-12, atol=1e-12)
    assert not transformed[:, 3].any()
    np.testing.assert_array_equal(transform_of(penalty, None), np.eye(4))


def test_a_limit_that_leaves_a_correlation_is_refused() -> None:
    rewards, verbosity = sample()
    message = r"objective long: its rank correlation with verbosity is 0\.\d+, and still 0\.\d+ with a penalty of 0.5"
    with pytest.raises(ConfigError, match=message):
        penalties(rewards, verbosity, 0.5, NAMES)


def test_a_verbosity_that_is_constant_is_refused() -> None:
    with pytest.raises(ConfigError, match="verbosity is the same in all rows"):
        penalties(np.ones((5, 1)), np.ones(5), 1.0, ("a",))
