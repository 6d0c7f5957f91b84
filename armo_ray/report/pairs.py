"""Chosen against rejected responses of the same row, if both were scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import duckdb

from armo_ray.measures.lengths import LENGTH_RATIOS
from armo_ray.report.columns import LENGTH, SCORE, Columns
from armo_ray.report.histograms import Bins, counted, fixed_bounds, histogram_of

_JOINED = """candidates c JOIN candidates r ON c.source_row = r.source_row AND c.source = r.source
    AND c.__output = r.__output
    WHERE c.role = 'chosen' AND r.role = 'rejected'"""


@dataclass(frozen=True)
class Margins:
    """Chosen minus rejected score."""

    quantiles: dict[str, float]
    histogram: Bins


@dataclass(frozen=True)
class ColumnAccuracy:
    """The fraction of pairs whose chosen response has the larger value, and pairs with equal values."""

    accuracy: float
    ties: int


@dataclass(frozen=True)
class RatioBin:
    """Pairs whose ratio of lengths, chosen to rejected, is at least `from_` and less than `to`."""

    from_: float
    to: float | None
    pairs: int
    accuracy: float | None


@dataclass(frozen=True)
class GroupPairs:
    """Pairs with one value of a column."""

    value: str | None
    pairs: int
    accuracy: float
    ties: int
    mean_margin: float
    chosen_is_longer: float | None


@dataclass(frozen=True)
class Pairs:
    """How often the scores agree with the labels; `columns` holds the score and every reward.

    Where no tokens were counted, chosen_is_longer is None and length is empty.
    """

    pairs: int
    accuracy: float
    ties: int
    mean_margin: float
    chosen_is_longer: float | None
    margins: Margins
    columns: dict[str, ColumnAccuracy]
    length: list[RatioBin]
    groups: dict[str, list[GroupPairs]]


def by_pair(
    con: duckdb.DuckDBPyConnection, columns: Columns, groups: Sequence[str], deviation: float
) -> Pairs | None:
    """Compare chosen with rejected; None if no row has both roles. The score's `deviation` scales the margins."""
    groups = [name for name in groups if name != "role"]
    names = [SCORE, *columns.rewards]
    _compare(con, columns, groups, names)
    sums = ", ".join(f"sum(w{i}), sum(t{i})" for i in range(len(names)))
    total, longer, margin, *counts = con.execute(
        f"SELECT sum(n), sum(longer), sum(margin), {sums} FROM paired"
    ).fetchall()[0]
    if not total:
        return None
    values = dict(zip(names, zip(counts[::2], counts[1::2], strict=True), strict=True))
    return Pairs(
        pairs=int(total),
        accuracy=float(values[SCORE][0] / total),
        ties=int(values[SCORE][1]),
        mean_margin=float(margin / total),
        chosen_is_longer=None if longer is None else float(longer / total),
        margins=_margins(con, columns, deviation),
        columns={
            name.removeprefix("rewards."): ColumnAccuracy(float(won / total), int(tied))
            for name, (won, tied) in values.items()
        },
        length=_by_length(con) if columns.has_lengths else [],
        groups={name: _by_group(con, i) for i, name in enumerate(groups)},
    )


def _compare(
    con: duckdb.DuckDBPyConnection, columns: Columns, groups: Sequence[str], names: Sequence[str]
) -> None:
    """Make the table `paired`: sums over the pairs with the same groups and the same bin of length ratios."""
    own, other = (f"{side}.{columns.alias(LENGTH)}" if columns.has_lengths else "NULL" for side in "cr")
    score = columns.alias(SCORE)
    bins = "".join(f"WHEN {own} < {x} * {other} THEN {i} " for i, x in enumerate(LENGTH_RATIOS))
    keys = [f"CASE {bins}ELSE {len(LENGTH_RATIOS)} END AS ratio"]
    keys += [f"c.g{list(columns.groups).index(name)} AS k{i}" for i, name in enumerate(groups)]
    sums = [f"sum((c.{columns.alias(n)} > r.{columns.alias(n)})::INT) AS w{i}" for i, n in enumerate(names)]
    sums += [f"sum((c.{columns.alias(n)} = r.{columns.alias(n)})::INT) AS t{i}" for i, n in enumerate(names)]
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE paired AS
            SELECT {", ".join(keys)}, count(*) AS n, sum(c.{score} - r.{score}) AS margin,
                sum(({own} > {other})::INT) AS longer, {", ".join(sums)}
            FROM {_JOINED} GROUP BY ALL"""
    )


def _margins(con: duckdb.DuckDBPyConnection, columns: Columns, deviation: float) -> Margins:
    bounds = fixed_bounds(-5 * deviation or -1.0, 5 * deviation or 1.0)
    sql = counted(f"c.{columns.alias(SCORE)} - r.{columns.alias(SCORE)}", "ends")
    ends = {"ends": bounds.all.tolist()}
    margins = histogram_of(con.execute(f"SELECT {sql} FROM {_JOINED}", ends).fetchall()[0], bounds)
    return Margins(margins.quantiles(), margins.bins())


def _by_length(con: duckdb.DuckDBPyConnection) -> list[RatioBin]:
    rows = con.execute("SELECT ratio, sum(n), sum(w0) FROM paired GROUP BY ratio").fetchall()
    counts = {ratio: (int(n), float(won / n)) for ratio, n, won in rows}
    ends = pairwise([0.0, *LENGTH_RATIOS, None])
    return [RatioBin(low or 0.0, high, *counts.get(i, (0, None))) for i, (low, high) in enumerate(ends)]


def _by_group(con: duckdb.DuckDBPyConnection, i: int) -> list[GroupPairs]:
    rows = con.execute(
        f"""SELECT k{i}, sum(n), sum(w0) / sum(n), sum(t0), sum(margin) / sum(n), sum(longer) / sum(n)
            FROM paired GROUP BY k{i} ORDER BY k{i}"""
    ).fetchall()
    return [
        GroupPairs(value, int(pairs), accuracy, int(ties), margin, longer)
        for value, pairs, accuracy, ties, margin, longer in rows
    ]
