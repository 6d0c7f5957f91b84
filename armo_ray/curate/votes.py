"""Votes of several models on the order of the candidates of a row."""

from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.floating[Any]]


class Votes(NamedTuple):
    """Of candidates (N,); NaN, or one half, for one that is alone in its row.

    won: share of the other candidates of the row that the majority puts below this one; a draw counts half.
    disagreement: share of the votes on these contests that are not those of the majority.
    """

    won: Floats
    disagreement: Floats


def voted(table: pa.Table, values: Floats) -> Votes:
    """Let models vote on every two candidates of a row.

    Args:
        table: rows of scores, in which those of one row of the input follow each other.
        values: (N, M) the value that every model gives to every candidate. Equal values vote for neither.
    """
    won, disagreement = np.full(len(values), 0.5), np.full(len(values), np.nan)
    rows = table["source_row"].to_pylist()
    for _, group in groupby(range(len(rows)), key=rows.__getitem__):
        at = list(group)
        if len(at) > 1:
            won[at], disagreement[at] = _of_row(values[at])
    return Votes(won, disagreement)


def _of_row(values: Floats) -> tuple[Floats, Floats]:
    """The same for the candidates (n, M) of one row."""
    sign = np.sign(values[:, None] - values[None, :])  # (n, n, M)
    members, others = values.shape[1], len(values) - 1
    total = np.sign(sign.sum(axis=2))  # of the majority
    against = (sign != total[:, :, None]).sum(axis=2) / members
    np.fill_diagonal(against, 0.0)
    shares = (total + 1) / 2
    np.fill_diagonal(shares, 0.0)
    return shares.sum(axis=1) / others, against.sum(axis=1) / others
