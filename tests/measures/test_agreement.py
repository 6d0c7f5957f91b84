"""Two sets of scores compared: ranks, order within prompts, numbers."""

import itertools

import numpy as np
import pandas as pd
import pytest

from armo_ray.measures.agreement import agreement, pairs_of, spearman


@pytest.mark.parametrize("distinct", [2, 5, 1000])
def test_spearman_is_the_correlation_of_mean_ranks(distinct: int) -> None:
    rng = np.random.default_rng(distinct)
    a, b = rng.integers(0, distinct, (2, 200)).astype(np.float32)
    expected = np.corrcoef(pd.Series(a).rank(), pd.Series(b).rank())[0, 1]
    assert spearman(a, b) == pytest.approx(expected, abs=1e-12)


def test_spearman_of_a_constant_or_of_nothing_is_none() -> None:
    assert spearman(np.ones(3), np.arange(3.0)) is None
    assert spearman(np.empty(0), np.empty(0)) is None


def test_pairs_are_all_pairs_of_one_prompt() -> None:
    prompt = np.random.default_rng(0).integers(0, 6, 40)
    first, second = pairs_of(prompt)
    expected = {(i, j) for i, j in itertools.combinations(range(40), 2) if prompt[i] == prompt[j]}
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == expected
    assert len(first) == len(expected)


def test_a_report_counts_flips_among_pairs_that_the_reference_does_not_tie() -> None:
    prompt = np.array([7, 7, 7, 3, 3])
    old, new = np.array([1.0, 2.0, 2.0, 5.0, 4.0]), np.array([3.0, 2.0, 1.0, 5.5, 4.0])
    actual = agreement({"score": old}, {"score": new}, prompt)
    assert (actual["candidates"], actual["pairs"]) == (5, 4)
    assert actual["columns"]["score"]["pair_flips"] == pytest.approx(
        2 / 3
    )  # of 1-2, 1-3 and 4-5; 2-3 was tied
    assert actual["columns"]["score"]["largest_difference"] == 2.0


def test_candidates_of_no_common_prompt_have_no_flips() -> None:
    actual = agreement({"score": np.arange(3.0)}, {"score": -np.arange(3.0)}, np.arange(3))
    assert actual["pairs"] == 0
    assert actual["columns"]["score"] == {"spearman": -1.0, "pair_flips": 0.0, "largest_difference": 4.0}
