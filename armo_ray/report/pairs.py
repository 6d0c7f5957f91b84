"""Chosen against rejected answers of one row, where both were scored."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import duckdb

from armo_ray.measures.lengths import LENGTH_RATIOS
from armo_ray.report.columns import LENGTH, SCORE, Columns
from armo_ray.report.histograms import counted, fixed_bounds, histogram_of

_JOINED = """candidates c JOIN candidates r ON c.source_row = r.source_row AND c.source = r.source
    AND c.__output = r.__output
    WHERE c.role = 'chosen' AND r.role = 'rejected'"""


def by_pair(
    con: duckdb.DuckDBPyConnection, columns: Columns, groups: Sequence[str], deviation: float
) -> dict[str, Any] | None:
    """Accuracy, the share of pairs whose chosen answer has the larger value: of score and each reward, by group and
    by length; and margins. None where no row has both roles."""
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
    return {
        "pairs": int(total),
        "accuracy": float(values[SCORE][0] / total),
        "ties": int(values[SCORE][1]),
        "mean_margin": float(margin / total),
        "chosen_is_longer": float(longer / total),
        "margins": _margins(con, columns, deviation),
        "columns": {
            name.removeprefix("rewards."): {"accuracy": float(won / total), "ties": int(tied)}
            for name, (won, tied) in values.items()
        },
        "length": _by_length(con),
        "groups": {name: _by_group(con, i) for i, name in enumerate(groups)},
    }


def _compare(
    con: duckdb.DuckDBPyConnection, columns: Columns, groups: Sequence[str], names: Sequence[str]
) -> None:
    """The table `paired`: sums over the pairs that are equal in all groups and in their ratio of lengths."""
    length, score = columns.alias(LENGTH), columns.alias(SCORE)
    bins = "".join(f"WHEN c.{length} < {x} * r.{length} THEN {i} " for i, x in enumerate(LENGTH_RATIOS))
    keys = [f"CASE {bins}ELSE {len(LENGTH_RATIOS)} END AS ratio"]
    keys += [f"c.g{list(columns.groups).index(name)} AS k{i}" for i, name in enumerate(groups)]
    sums = [f"sum((c.{columns.alias(n)} > r.{columns.alias(n)})::INT) AS w{i}" for i, n in enumerate(names)]
    sums += [f"sum((c.{columns.alias(n)} = r.{columns.alias(n)})::INT) AS t{i}" for i, n in enumerate(names)]
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE paired AS
            SELECT {", ".join(keys)}, count(*) AS n, sum(c.{score} - r.{score}) AS margin,
                sum((c.{length} > r.{length})::INT) AS longer, {", ".join(sums)}
            FROM {_JOINED} GROUP BY ALL"""
    )


def _margins(con: duckdb.DuckDBPyConnection, columns: Columns, deviation: float) -> dict[str, Any]:
    bounds = fixed_bounds(-5 * deviation or -1.0, 5 * deviation or 1.0)
    sql = counted(f"c.{columns.alias(SCORE)} - r.{columns.alias(SCORE)}", bounds)
    found = histogram_of(con.execute(f"SELECT {sql} FROM {_JOINED}").fetchall()[0], bounds)
    return {"quantiles": found.quantiles(), "histogram": found.to_json()}


def _by_length(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    rows = con.execute("SELECT ratio, sum(n), sum(w0) FROM paired GROUP BY ratio").fetchall()
    found = {ratio: (int(n), float(won / n)) for ratio, n, won in rows}
    told = []
    for i, (low, high) in enumerate(pairwise([0.0, *LENGTH_RATIOS, None])):
        pairs, accuracy = found.get(i, (0, None))
        told.append({"from": low, "to": high, "pairs": pairs, "accuracy": accuracy})
    return told


def _by_group(con: duckdb.DuckDBPyConnection, i: int) -> list[dict[str, Any]]:
    rows = con.execute(
        f"""SELECT k{i}, sum(n), sum(w0) / sum(n), sum(t0), sum(margin) / sum(n), sum(longer) / sum(n)
            FROM paired GROUP BY k{i} ORDER BY k{i}"""
    ).fetchall()
    keys = ("value", "pairs", "accuracy", "ties", "mean_margin", "chosen_is_longer")
    return [dict(zip(keys, (v, int(n), a, int(t), m, le), strict=True)) for v, n, a, t, m, le in rows]
