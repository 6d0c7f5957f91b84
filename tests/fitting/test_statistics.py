"""Streaming sums: the same regression whatever the blocks, masks and order; nothing that is not finite enters."""

from typing import Any

import numpy as np
import pytest

from armo_ray.errors import ConfigError
from armo_ray.fitting.ridge import ridge
from armo_ray.fitting.statistics import (
    Floats,
    Hidden,
    Statistics,
    accumulate,
    added,
    empty,
    from_bytes,
    to_bytes,
)
from tests.support.hidden_states import Rows, rows_of

NAMES = ("helpful", "correct", "safe")


def streamed(rows: Rows, blocks: int = 7, order: list[int] | None = None) -> Statistics:
    stats = empty(NAMES, rows.last.shape[1])
    parts = np.array_split(np.arange(len(rows.fold)), blocks)
    for i in order or range(blocks):
        accumulate(stats, rows.last[parts[i]], rows.labels[parts[i]], rows.fold[parts[i]])
    return stats


@pytest.mark.parametrize("kinds", ["few", "many"])
def test_groups_are_never_more_than_labels_times_folds(kinds: str) -> None:
    rows = rows_of(3000, 16, missing=kinds)
    stats = streamed(rows)
    assert stats.by_label == (kinds == "many")
    assert len(stats.groups) <= len(NAMES) * stats.folds
    assert stats.rows == 3000


@pytest.mark.parametrize("kinds", ["few", "many"])
def test_sums_of_each_label_are_those_of_its_rows(kinds: str) -> None:
    rows = rows_of(9000, 8, missing=kinds)
    stats = from_bytes(to_bytes(streamed(rows)))
    fit = ridge(stats)
    x = rows.last.astype(np.float64)
    for k in range(len(NAMES)):
        own = ~np.isnan(rows.labels[:, k])
        groups = [sums for key, sums in stats.groups.items() if k in key[0]]
        for actual, expected in (
            (sum(s.gram for s in groups), x[own].T @ x[own]),
            (sum(s.cross[k] for s in groups), rows.labels[own, k] @ x[own]),
            (sum(s.squares[k] for s in groups), np.square(rows.labels[own, k]).sum()),
        ):
            np.testing.assert_allclose(actual, expected, rtol=1e-12)
        assert fit.rows[k] == own.sum()
        assert fit.mean[k] == pytest.approx(np.nanmean(rows.labels[:, k]), rel=1e-12)
        assert fit.deviation[k] == pytest.approx(np.nanstd(rows.labels[:, k]), rel=1e-9)


@pytest.mark.parametrize("kinds", ["few", "many"])
def test_the_same_order_gives_the_same_bits_and_another_order_nearly(kinds: str) -> None:
    rows = rows_of(9000, 24, missing=kinds)
    once, again = ridge(streamed(rows)), ridge(streamed(rows))
    other = ridge(streamed(rows, order=[3, 1, 6, 0, 5, 2, 4]))
    assert once.weights.tobytes() == again.weights.tobytes()
    assert once.r2.tobytes() == again.r2.tobytes()
    difference = rows.last @ (once.weights - other.weights).T / once.deviation
    assert np.abs(difference).max() < 1e-9


@pytest.mark.parametrize("kinds", ["few", "many"])
def test_statistics_that_were_written_go_on_to_the_same_bits(kinds: str) -> None:
    rows = rows_of(9000, 24, missing=kinds)
    whole, copied = empty(NAMES, 24), empty(NAMES, 24)
    for part in np.array_split(np.arange(9000), 5):
        for stats in (whole, copied):
            accumulate(stats, rows.last[part], rows.labels[part], rows.fold[part])
        copied = from_bytes(to_bytes(copied))
    assert ridge(copied).weights.tobytes() == ridge(whole).weights.tobytes()


@pytest.mark.parametrize("kinds", ["few", "many", "both"])
def test_added_statistics_are_those_of_all_rows(kinds: str) -> None:
    first = rows_of(5000, 24, missing="many" if kinds == "both" else kinds)
    second = rows_of(5000, 24, missing="none" if kinds == "both" else kinds, seed=1)
    for a, b in ((first, second), (second, first)):
        total, part = streamed(a), streamed(b)
        before = to_bytes(part)
        _freeze(part)
        total = added(added(empty(NAMES, 24), total), part)
        whole = Rows(*(np.concatenate([getattr(r, name) for r in (a, b)]) for name in Rows._fields))
        expected, actual = ridge(streamed(whole)), ridge(total)
        assert total.rows == 10000
        np.testing.assert_allclose(actual.weights, expected.weights, rtol=1e-7, atol=1e-9)
        np.testing.assert_array_equal(actual.rows, expected.rows)
        assert to_bytes(part) == before


def _freeze(stats: Statistics) -> None:
    """As Ray hands out arrays of another process."""
    for sums in stats.groups.values():
        for array in (sums.gram, sums.cross, sums.labels, sums.squares, sums.hidden, sums.waiting):
            array.flags.writeable = False


def test_rows_without_labels_count_but_add_nothing() -> None:
    stats = empty(NAMES, 8)
    accumulate(stats, np.ones((5, 8), np.float32), np.full((5, 3), np.nan), np.zeros(5, np.int64))
    assert (stats.rows, stats.groups) == (5, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last": (3, 2, np.nan)}, "row 3 of a block of 10: its hidden state is not finite"),
        ({"last": (9, 0, np.inf)}, "row 9 of a block of 10: its hidden state is not finite"),
        ({"labels": (4, 1, -np.inf)}, "objective correct: a label is infinite"),
    ],
)
def test_what_is_not_finite_is_refused(change: dict[str, tuple[int, int, float]], message: str) -> None:
    arrays: dict[str, Any] = {"last": np.ones((10, 8), np.float32), "labels": np.ones((10, 3))}
    for name, (row, column, value) in change.items():
        arrays[name][row, column] = value
    stats = empty(NAMES, 8)
    with pytest.raises(ConfigError, match=message):
        accumulate(stats, arrays["last"], arrays["labels"], np.zeros(10, np.int64))
    assert stats.rows == 0


def test_shapes_and_folds_that_do_not_fit_are_errors() -> None:
    stats, last = empty(NAMES, 8, folds=2), np.ones((4, 8), np.float32)
    cases: list[tuple[Hidden, Floats, list[int]]] = [
        (last[:, :7], np.ones((4, 3)), [0, 0, 1, 1]),
        (last, np.ones((4, 2)), [0, 0, 1, 1]),
        (last, np.ones((4, 3)), [0, 0, 1, 2]),
    ]
    for hidden, labels, fold in cases:
        with pytest.raises(ValueError, match=r"folds|fit"):
            accumulate(stats, hidden, labels, np.array(fold))
