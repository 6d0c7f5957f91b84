"""Weights are those of a logistic regression on differences and their reverses."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression

from armo_ray.errors import ConfigError
from armo_ray.fitting.bradley_terry import bradley_terry, choose_penalty, scale_of

Floats = npt.NDArray[np.float64]


def pairs(count: int, width: int, noise: float = 1.0, seed: int = 0) -> Floats:
    """Differences of very unequal scales, of which most agree with hidden weights."""
    rng = np.random.default_rng(seed)
    differences = rng.standard_normal((count, width)) * np.geomspace(10, 0.1, width)
    margins = differences @ np.linspace(1, -1, width) / np.sqrt(width)
    flipped = margins + noise * rng.logistic(size=count) < 0
    differences[flipped] *= -1
    return differences


def reference(differences: Floats, penalty: float) -> Floats:
    """Weights of scikit-learn, which counts each pair twice."""
    both = np.concatenate((differences, -differences))
    sides = np.repeat([1, 0], len(differences))
    model = LogisticRegression(
        C=1 / (2 * penalty), fit_intercept=False, solver="newton-cholesky", tol=1e-13, max_iter=1000
    )
    weights: Floats = model.fit(both, sides).coef_[0]
    return weights


def in_blocks(differences: Floats, size: int) -> Iterator[Floats]:
    return (differences[i : i + size] for i in range(0, len(differences), size))


@pytest.mark.parametrize(
    ("count", "width", "penalty"), [(2000, 5, 1e-3), (2000, 5, 300.0), (40, 100, 0.1), (1000, 1, 1.0)]
)
def test_margins_are_those_of_scikit_learn(count: int, width: int, penalty: float) -> None:
    differences = pairs(count, width)
    passes = 0

    def blocks() -> Iterator[Floats]:
        nonlocal passes
        passes += 1
        return in_blocks(differences, 333)

    margins = differences @ bradley_terry(blocks, penalty)
    assert np.abs(margins - differences @ reference(differences, penalty)).max() < 1e-9
    assert np.abs(margins).max() > 0.1
    assert passes <= 15


def test_without_a_penalty_the_gradient_is_zero() -> None:
    differences = pairs(2000, 6)
    weights = bradley_terry(lambda: [differences], 0)
    wrong = 1 / (1 + np.exp(differences @ weights))
    assert np.abs(wrong @ differences).max() < 1e-9 * np.abs(differences).sum()


def test_without_a_penalty_a_repeated_column_gets_half_of_the_weight() -> None:
    differences = pairs(500, 3)
    alone = bradley_terry(lambda: [differences], 0)
    twice = bradley_terry(lambda: [np.concatenate((differences, differences[:, :1]), axis=1)], 0)
    assert twice == pytest.approx([alone[0] / 2, alone[1], alone[2], alone[0] / 2], abs=1e-9)


def test_a_start_far_away_leads_to_the_same_weights() -> None:
    differences = pairs(500, 4)
    expected = bradley_terry(lambda: [differences], 1.0)
    far = bradley_terry(lambda: [differences], 1.0, start=np.array([50.0, 50.0, -90.0, 20.0]))
    assert far == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", ["all", "some"])
def test_pairs_that_some_weights_never_contradict_need_a_penalty(kind: str) -> None:
    differences = np.abs(pairs(200, 3))
    if kind == "some":  # the first column is never negative, the others decide nothing
        differences = pairs(200, 3)
        differences[:, 0] = 0
        differences[:20, 0] = 1
    with pytest.raises(ConfigError, match="a penalty greater than 0"):
        bradley_terry(lambda: [differences], 0)
    weights = bradley_terry(lambda: [differences], 0.01)
    assert np.abs(differences @ (weights - reference(differences, 0.01))).max() < 1e-9


def test_the_chosen_penalty_predicts_left_out_folds_best() -> None:
    differences = pairs(120, 40, noise=3)
    fold = np.arange(120) % 4
    choice = choose_penalty(lambda: [(differences[:50], fold[:50]), (differences[50:], fold[50:])], 4)
    direct = {}
    for relative, _ in choice.log_losses:
        losses = []
        for k in range(4):
            train, test = differences[fold != k], differences[fold == k]
            weights = reference(train, relative * float(np.square(train).sum()) / 160)
            losses.append(np.log1p(np.exp(-(test @ weights))))
        direct[relative] = float(np.concatenate(losses).mean())
    assert dict(choice.log_losses) == pytest.approx(direct, abs=1e-5)
    assert choice.relative == min(direct, key=lambda relative: direct[relative])
    assert choice.penalty == pytest.approx(choice.relative * np.square(differences).sum() / 160)
    assert max(direct.values()) - min(direct.values()) > 0.01


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ConfigError, match="no pairs"):
        bradley_terry(list, 1.0)
    with pytest.raises(ConfigError, match="not a finite number"):
        bradley_terry(lambda: [np.array([[1.0, np.nan]])], 1.0)
    with pytest.raises(ConfigError, match="2 pairs are too few for 3 folds: fold 2 has none"):
        choose_penalty(lambda: [(np.ones((2, 1)), np.array([0, 1]))], 3)
    assert scale_of(lambda: [np.zeros((3, 2))]) == 1
