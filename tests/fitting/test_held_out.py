"""Measures on held-out pairs follow from their formulas."""

import math

import numpy as np
import pytest

from armo_ray.fitting.held_out import log_losses, mean_of, measure, paired_difference, table_rows


def test_a_tie_counts_half_and_errors_are_those_of_means() -> None:
    margins = np.array([2.0, -1.0, 0.0, 3.0])
    found = measure("some", margins)
    right = [1, 0, 0.5, 1]
    losses = [math.log(1 + math.exp(-z)) for z in margins]
    assert found[:3] == ("some", 4, 0.625)
    assert found.accuracy_se == pytest.approx(np.std(right, ddof=1) / 2)
    assert found.log_loss == pytest.approx(np.mean(losses))
    assert found.log_loss_se == pytest.approx(np.std(losses, ddof=1) / 2)


def test_large_margins_do_not_overflow() -> None:
    assert log_losses(np.array([-1e4, 1e4])) == pytest.approx([1e4, 0])


def test_the_difference_of_two_is_measured_on_the_same_pairs() -> None:
    a = np.random.default_rng(0).random(50)
    b = a + 0.01 * np.random.default_rng(1).random(50)
    mean, error = paired_difference(a, b)
    assert mean == pytest.approx(a.mean() - b.mean())
    assert error == pytest.approx((a - b).std(ddof=1) / np.sqrt(50))
    assert error < 0.1 * (a.std() + b.std()) / np.sqrt(50)


def test_pairs_of_one_prompt_count_as_one() -> None:
    values = np.random.default_rng(0).random(30)
    alone = mean_of(values)
    assert mean_of(values, np.arange(30)) == pytest.approx(alone)
    thrice, groups = np.repeat(values, 3), np.repeat(np.arange(30), 3)
    assert mean_of(thrice, groups) == pytest.approx(alone)
    assert mean_of(thrice)[1] < 0.6 * alone[1]


def test_one_pair_has_no_error_and_none_is_refused() -> None:
    assert table_rows([measure("one", np.array([0.0]))]) == [("one", "1", "50.0", "-", "0.6931", "-")]
    with pytest.raises(ValueError, match="no pairs"):
        measure("none", np.array([]))
