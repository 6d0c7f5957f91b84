"""Ridge regression from sums: scikit-learn's, measures of folds as of direct predictions, and refusals."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from armo_ray.errors import ConfigError
from armo_ray.fitting.ridge import ridge
from armo_ray.fitting.statistics import Floats, Statistics, accumulate, empty
from tests.support.hidden_states import Rows, rows_of

SIZE = 40
NAMES = ("helpful", "correct", "safe")


def statistics(rows: Rows) -> Statistics:
    stats = empty(NAMES[: rows.labels.shape[1]], rows.last.shape[1])
    for part in np.array_split(np.arange(len(rows.fold)), 3):
        accumulate(stats, rows.last[part], rows.labels[part], rows.fold[part])
    return stats


def direct(rows: Rows, k: int, chosen: np.ndarray, alpha: float) -> Floats:
    """The weights of scikit-learn in float64, of the chosen rows that have label k."""
    own = chosen & ~np.isnan(rows.labels[:, k])
    x = rows.last[own].astype(np.float64)
    penalty = alpha * np.square(x).sum() / x.shape[1]
    fitted: Floats = (
        Ridge(alpha=penalty, fit_intercept=False, solver="cholesky").fit(x, rows.labels[own, k]).coef_
    )
    return fitted


@pytest.mark.parametrize("missing", ["none", "few", "many"])
def test_weights_are_those_of_scikit_learn_in_float64(missing: str) -> None:
    rows = rows_of(4000, SIZE, noise=0.3, missing=missing)
    for alpha in (1e-8, 1e-4, 1e-2):
        fit = ridge(statistics(rows), [alpha])
        for k in range(3):
            expected = direct(rows, k, np.full(4000, True), alpha)
            predicted = rows.last.astype(np.float64) @ (fit.weights[k] - expected)
            assert np.abs(predicted).max() < 1e-9 * fit.deviation[k]


@pytest.mark.parametrize("missing", ["none", "few", "many"])
def test_r2_and_correlation_of_folds_are_those_of_direct_predictions(missing: str) -> None:
    rows = rows_of(2500, SIZE, missing=missing)
    alphas = [1e-5, 1e-3, 1e-1]
    fit = ridge(statistics(rows), alphas)
    x = rows.last.astype(np.float64)
    for k in range(3):
        own = ~np.isnan(rows.labels[:, k])
        predicted = {a: np.empty(2500) for a in alphas}
        for alpha, values in predicted.items():
            for fold in range(5):
                values[rows.fold == fold] = x[rows.fold == fold] @ direct(rows, k, rows.fold != fold, alpha)
        errors = [np.square(values - rows.labels[:, k])[own].mean() for values in predicted.values()]
        best = predicted[alphas[int(np.argmin(errors))]]
        assert fit.alpha[k] == alphas[int(np.argmin(errors))]
        assert fit.r2[k] == pytest.approx(1 - min(errors) / np.var(rows.labels[own, k]), rel=1e-10)
        assert fit.pearson[k] == pytest.approx(np.corrcoef(best[own], rows.labels[own, k])[0, 1], rel=1e-10)
        unseen = np.einsum("nh,nh->n", x, fit.fold_weights[rows.fold, k])
        np.testing.assert_allclose(unseen, best, rtol=1e-8, atol=1e-10)


def test_a_planted_head_is_recovered() -> None:
    rows = rows_of(4000, SIZE, noise=0)
    fit = ridge(statistics(rows), [1e-9])
    difference = rows.last @ fit.weights.T - rows.truth
    assert (np.abs(difference).max(axis=0) < 1e-5 * fit.deviation).all()
    assert fit.r2.min() > 1 - 1e-9


def test_labels_without_noise_need_no_wider_grid() -> None:
    fit = ridge(statistics(rows_of(4000, SIZE, noise=0)))
    assert fit.alpha.tolist() == [1e-8] * 3


@pytest.mark.parametrize("noise", [0.3, 2.0])
def test_noise_moves_predictions_no_more_than_it_must(noise: float) -> None:
    count = 3000
    fit, fresh = ridge(statistics(rows_of(count, SIZE, noise=noise))), rows_of(4000, SIZE, seed=5)
    difference = fresh.last @ fit.weights.T - fresh.truth
    bound = 1.1 * noise * np.sqrt(SIZE / (count - SIZE - 1))
    assert np.sqrt(np.square(difference).mean()) < bound


def test_a_label_alone_gives_the_same_head_as_beside_others() -> None:
    rows = rows_of(3000, SIZE, missing="many")
    alone = ridge(statistics(rows._replace(labels=rows.labels[:, :1])))
    np.testing.assert_allclose(ridge(statistics(rows)).weights[0], alone.weights[0], rtol=1e-7, atol=1e-10)


def labels_of(kind: str) -> Rows:
    rows = rows_of(30 if kind == "few" else 1000, SIZE)
    labels, rng = rows.labels, np.random.default_rng(3)
    if kind == "null":
        labels[:, 1] = np.nan
    elif kind == "constant":
        labels[::2, 1], labels[1::2, 1] = 0.25, np.nan
    elif kind == "noise":
        labels[:, 1] = rng.standard_normal(len(labels))
    elif kind == "two":
        labels[:, 1], labels[200:, 1], labels[5:7, 1] = 0, np.nan, 1
    elif kind == "one fold":
        labels[rows.fold != 2, 1] = np.nan
    return rows


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("null", "objective correct: none of the 1000 rows has a label"),
        ("constant", "objective correct: all 500 labels are 0.25"),
        ("few", "objective helpful: 30 rows with a label, fewer than the 40 hidden units.*--allow-few"),
        ("noise", "objective correct: cross-validated R2 is -0"),
        ("two", "objective correct: cross-validated R2 is -0"),
        ("one fold", "objective correct: its rows are all in one fold"),
    ],
)
def test_labels_that_teach_nothing_are_refused(kind: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ridge(statistics(labels_of(kind)))


def test_few_rows_are_fitted_if_that_is_asked() -> None:
    rows = rows_of(30, SIZE, noise=0.01)
    fit = ridge(statistics(rows), allow_few=True)
    assert fit.rows.tolist() == [30] * 3
    assert np.corrcoef(rows.last @ fit.weights[0], rows.truth[:, 0])[0, 1] > 0.9


def test_a_best_penalty_at_an_edge_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"objective helpful: the best penalty is 0.01, the smallest .* smaller"
    ):
        ridge(statistics(rows_of(2000, SIZE, noise=0.1)), [0.01, 0.1, 1.0])
    with pytest.raises(
        ConfigError, match=r"objective helpful: the best penalty is 0.0001, the largest .* larger"
    ):
        ridge(statistics(rows_of(400, SIZE, noise=0.2)), [1e-6, 1e-5, 1e-4])


def test_an_error_says_how_to_do_without_an_objective() -> None:
    rows = statistics(rows_of(400, SIZE, noise=0.2))
    with pytest.raises(ConfigError, match=r"(?m)^objective helpful: .* or give --verbosity none$"):
        ridge(rows, [1e-6, 1e-5, 1e-4], without={"helpful": "give --verbosity none"})
    with pytest.raises(ConfigError, match=r"(?m)^objective helpful: .* or leave it out$"):
        ridge(rows, [1e-6, 1e-5, 1e-4], without={"safe": "give --verbosity none"})


def test_all_that_is_wrong_is_said_at_once_and_what_would_work() -> None:
    rows = rows_of(400, SIZE, noise=0.01)
    count = len(rows.fold)
    rng = np.random.default_rng(3)
    added = [rows.labels[:, 0], np.full(count, 2.0), rng.normal(size=count), np.full(count, np.nan)]
    names = ("good", "same", "noise", "none")
    stats = empty(names, SIZE)
    accumulate(stats, rows.last, np.stack(added, axis=1), rows.fold)
    with pytest.raises(ConfigError) as error:
        ridge(stats)
    same, noise, none, others = str(error.value).split("\n")
    assert same.startswith("objective same: all 400 labels are 2")
    assert noise.startswith("objective noise: cross-validated R2 is -")
    assert none.startswith("objective none: none of the 400 rows")
    assert others == "the others can be fitted: --objective good"
