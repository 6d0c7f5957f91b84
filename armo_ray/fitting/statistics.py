"""Sums from which every ridge regression follows: one pass over the rows, in float64.

A row with hidden state x and labels y adds to the sums of one group: the rows that have the same labels, in the same
fold. Where rows lack labels in more ways than there are labels, there is a group for each label instead, and a row
adds to as many groups as it has labels. So there are never more groups than labels times folds, but for a moment twice
as many while the first kind becomes the second. A group holds 8 H^2 bytes and up to 8,192 H of rows that wait for a
matrix product: 0.17 GB with H = 4,096. While rows are added, 8 H^2 and 16,384 H more are in use: 0.2 GB.

The same rows in the same order and blocks give the same bits, on the same kind of CPU and number of threads.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from armo_ray.errors import ConfigError

Floats = npt.NDArray[np.float64]
Hidden = npt.NDArray[np.float32]
Key = tuple[tuple[int, ...], int]  # the labels that its rows have, and their fold

ROWS = 2048  # of a matrix product


@dataclass
class Sums:
    """Sums over the rows of a group, with H hidden units and K labels; a label that the rows lack counts as 0."""

    gram: Floats  # (H, H), of x x'
    cross: Floats  # (K + 1, H), of y x', and of x
    labels: Floats  # (K,), of y
    squares: Floats  # (K,), of y^2
    rows: int = 0
    hidden: Hidden = field(
        default_factory=lambda: np.empty((0, 0), np.float32)
    )  # rows that wait for a product
    waiting: Floats = field(default_factory=lambda: np.empty((0, 0)))  # their labels, and a 1
    count: int = 0  # of rows that wait


@dataclass
class Statistics:
    """Sums over all rows for the regressions of K labels on H hidden units. Made by `empty`."""

    names: tuple[str, ...]  # of the labels
    size: int  # H
    folds: int
    low: Floats  # (K,) the smallest label; infinite without any
    high: Floats  # (K,) the largest
    rows: int = 0  # all rows, also those without a label
    by_label: bool = False  # whether there is a group for each label
    groups: dict[Key, Sums] = field(default_factory=dict)
    scratch: "_Scratch | None" = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs."""
        return {**self.__dict__, "scratch": None}


def empty(names: Sequence[str], size: int, folds: int = 5) -> Statistics:
    """Statistics of no rows, for the labels `names` and hidden states of `size` units."""
    low = np.full(len(names), np.inf)
    return Statistics(tuple(names), size, folds, low, -low)


def accumulate(stats: Statistics, last: Hidden, labels: Floats, fold: npt.NDArray[np.integer[Any]]) -> None:
    """Add rows.

    Args:
        stats: Changed in place.
        last: (n, H) hidden states.
        labels: (n, K), NaN where a label is missing.
        fold: (n,) from 0 to the number of folds less 1; equal for the rows of a prompt (sampling.folds_of).

    Raises:
        ConfigError: A hidden state or a label is infinite, or a hidden state is not a number.
        ValueError: The shapes do not fit.
    """
    if last.shape != (len(fold), stats.size) or labels.shape != (len(fold), len(stats.names)):
        raise ValueError(
            f"{last.shape} hidden states, {labels.shape} labels and {len(fold)} folds do not fit"
        )
    if len(fold) and not 0 <= fold.min() <= fold.max() < stats.folds:
        raise ValueError(f"folds are numbers from 0 to {stats.folds - 1}")
    _check_finite(stats, last, labels)
    stats.rows += len(fold)
    stats.low = np.fmin(stats.low, np.fmin.reduce(labels, axis=0, initial=np.inf))
    stats.high = np.fmax(stats.high, np.fmax.reduce(labels, axis=0, initial=-np.inf))
    scratch = _scratch(stats)
    for key, rows in _groups_of(stats, ~np.isnan(labels), fold):
        sums = _sums(stats, key)
        columns = np.zeros((len(rows), len(stats.names) + 1))
        columns[:, key[0]] = labels[rows][:, key[0]]
        columns[:, -1] = 1.0
        _wait(sums, last, rows, columns, scratch)


def added(stats: Statistics, more: Statistics) -> Statistics:
    """The statistics of the rows of both, in the memory of `stats`, which is changed; `more` may be read-only.

    The order of additions decides the last bits: add in the order of the units.
    """
    if (stats.names, stats.size, stats.folds) != (more.names, more.size, more.folds):
        raise ValueError("statistics of other labels, hidden sizes or folds cannot be added")
    stats.rows += more.rows
    stats.low, stats.high = np.fmin(stats.low, more.low), np.fmax(stats.high, more.high)
    labels = {key[0] for key in (*stats.groups, *more.groups)}
    if not stats.by_label and (more.by_label or len(labels) > len(stats.names)):
        _split(stats)
    scratch = _scratch(stats)
    for key in sorted(more.groups):
        for part in [((k,), key[1]) for k in key[0]] if stats.by_label else [key]:
            _add(_sums(stats, part), more.groups[key], part[0], scratch)
    return stats


def flush(stats: Statistics) -> Statistics:
    """Multiply the rows that still wait, and free their memory. Returns `stats`, in which all sums are complete."""
    scratch = _scratch(stats)
    for key in sorted(stats.groups):
        _multiply(stats.groups[key], scratch)
        stats.groups[key].hidden, stats.groups[key].waiting = np.empty((0, 0), np.float32), np.empty((0, 0))
    stats.scratch = None
    return stats


def to_bytes(stats: Statistics) -> bytes:
    """An .npz file. Statistics read from it go on to the same bits as if they had not been written."""
    arrays: dict[str, Any] = {
        "names": np.array(stats.names),
        "about": np.array([stats.size, stats.folds, stats.rows, stats.by_label]),
        "range": np.array([stats.low, stats.high]),
        "keys": np.array([",".join(map(str, (*key[0], key[1]))) for key in stats.groups], np.str_),
    }
    for i, sums in enumerate(stats.groups.values()):
        arrays |= {f"gram{i}": sums.gram, f"cross{i}": sums.cross}
        arrays |= {f"sums{i}": np.array([sums.labels, sums.squares]), f"rows{i}": np.array(sums.rows)}
        arrays |= {f"hidden{i}": sums.hidden[: sums.count], f"waiting{i}": sums.waiting[: sums.count]}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def from_bytes(content: bytes) -> Statistics:
    """Statistics from `to_bytes`. Raises ValueError if the content is damaged."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        size, folds, rows, by_label = file["about"].tolist()
        low, high = file["range"]
        names = tuple(file["names"].tolist())
        stats = Statistics(names, size, folds, low, high, rows, bool(by_label))
        for i, text in enumerate(file["keys"].tolist()):
            *labels, fold = map(int, text.split(","))
            sums = _sums(stats, (tuple(labels), fold))
            sums.gram, sums.cross, sums.rows = file[f"gram{i}"], file[f"cross{i}"], int(file[f"rows{i}"])
            sums.labels, sums.squares = file[f"sums{i}"]
            sums.count = len(file[f"hidden{i}"])
            if sums.count:
                sums.hidden = _room(file[f"hidden{i}"])
                sums.waiting = _room(file[f"waiting{i}"])
    return stats


class _Scratch:
    """Memory that the groups share; made once, since pages are slow to get."""

    def __init__(self, size: int) -> None:
        self.product, self.rows = np.empty((size, size)), np.empty((ROWS, size))


def _scratch(stats: Statistics) -> _Scratch:
    stats.scratch = stats.scratch or _Scratch(stats.size)
    return stats.scratch


def _check_finite(stats: Statistics, last: Hidden, labels: Floats) -> None:
    if not np.isfinite(last).all():
        row = int(np.argmax(~np.isfinite(last).all(axis=1)))
        raise ConfigError(
            f"row {row} of a block of {len(last)}: its hidden state is not finite: embed it again"
        )
    if infinite := np.flatnonzero(np.isinf(labels).any(axis=0)).tolist():
        raise ConfigError(f"objective {stats.names[infinite[0]]}: a label is infinite; null means missing")


def _groups_of(
    stats: Statistics, present: npt.NDArray[np.bool_], fold: npt.NDArray[np.integer[Any]]
) -> Iterator[tuple[Key, npt.NDArray[np.int64]]]:
    """The groups that rows add to, with the numbers of the rows; by label, if there would be too many."""
    masks, mask_of = np.unique(present, axis=0, return_inverse=True)
    sets = [tuple(np.flatnonzero(mask).tolist()) for mask in masks]
    if not stats.by_label and len({key[0] for key in stats.groups} | ({*sets} - {()})) > len(stats.names):
        _split(stats)
    members: list[tuple[tuple[int, ...], npt.NDArray[np.bool_]]]
    if stats.by_label:
        members = [((k,), present[:, k]) for k in range(len(stats.names))]
    else:
        members = [(labels, mask_of.reshape(-1) == i) for i, labels in enumerate(sets) if labels]
    for labels, chosen in members:
        for number in range(stats.folds):
            rows = np.flatnonzero(chosen & (fold == number))
            if len(rows):
                yield (labels, number), rows


def _sums(stats: Statistics, key: Key) -> Sums:
    if key not in stats.groups:
        size, count = stats.size, len(stats.names)
        zeros = np.zeros((size, size)), np.zeros((count + 1, size)), np.zeros(count), np.zeros(count)
        stats.groups[key] = Sums(*zeros)
    return stats.groups[key]


def _split(stats: Statistics) -> None:
    """Make a group for each label of the groups for sets of labels."""
    old, stats.groups, stats.by_label = stats.groups, {}, True
    scratch = _scratch(stats)
    for key in sorted(old):
        for k in key[0]:
            _add(_sums(stats, ((k,), key[1])), old[key], (k,), scratch)
        del old[key]


def _add(sums: Sums, more: Sums, labels: tuple[int, ...], scratch: _Scratch) -> None:
    """Add what `more` has of the labels, also of the rows that wait in it."""
    own = [*labels, sums.cross.shape[0] - 1]
    sums.gram += more.gram
    sums.cross[own] += more.cross[own]
    sums.labels[own[:-1]] += more.labels[own[:-1]]
    sums.squares[own[:-1]] += more.squares[own[:-1]]
    sums.rows += more.rows
    columns = np.zeros((more.count, len(sums.cross)))
    columns[:, own] = more.waiting[: more.count][:, own] if more.count else 0.0
    _wait(sums, more.hidden, np.arange(more.count), columns, scratch)


def _room(rows: npt.NDArray[Any]) -> Any:
    """The rows in an array with room for `ROWS`."""
    room = np.empty((ROWS, rows.shape[1]), rows.dtype)
    room[: len(rows)] = rows
    return room


def _wait(sums: Sums, last: Hidden, rows: npt.NDArray[np.int64], columns: Floats, scratch: _Scratch) -> None:
    """Let rows wait for a product; multiply whenever there are enough."""
    if len(rows) and not len(sums.hidden):
        sums.hidden, sums.waiting = _room(last[:0]), _room(columns[:0])
    begin = 0
    while begin < len(rows):
        end = min(begin + ROWS - sums.count, len(rows))
        place = slice(sums.count, sums.count + end - begin)
        np.take(last, rows[begin:end], axis=0, out=sums.hidden[place], mode="clip")  # clip: without a copy
        sums.waiting[place] = columns[begin:end]
        sums.count, begin = place.stop, end
        if sums.count == ROWS:
            _multiply(sums, scratch)


def _multiply(sums: Sums, scratch: _Scratch) -> None:
    if not sums.count:
        return
    x, y = scratch.rows[: sums.count], sums.waiting[: sums.count]
    x[:] = sums.hidden[: sums.count]
    sums.gram += np.matmul(x.T, x, out=scratch.product)  # a symmetric product: half of the operations
    sums.cross += y.T @ x
    sums.labels += y[:, :-1].sum(axis=0)
    sums.squares += np.square(y[:, :-1]).sum(axis=0)
    sums.rows, sums.count = sums.rows + sums.count, 0
