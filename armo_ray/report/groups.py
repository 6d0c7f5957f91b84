"""Candidates by the values of kept columns and directories, and by length."""

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb

from armo_ray.report.columns import LENGTH, SCORE, Columns
from armo_ray.report.histograms import Histogram

MOST_VALUES = 256  # of a column to group by
_FEWEST_ROWS = 5  # that a value has on average, or the column tells rows apart rather than groups
_MOST_GROUPS = 6
_LENGTH_BINS = 12


def chosen_groups(distinct: Mapping[str, int], rows: int) -> list[str]:
    """The columns with few values, but more than one; those with the fewest first."""
    most = min(MOST_VALUES, max(2, rows // _FEWEST_ROWS))
    fit = [name for name, count in distinct.items() if 2 <= count <= most]
    return sorted(fit, key=lambda name: (distinct[name], name))[:_MOST_GROUPS]


def by_group(
    con: duckdb.DuckDBPyConnection, columns: Columns, groups: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Of every value of each column: candidates, means of score, lengths, rewards and gates, in one scan."""
    if not groups:
        return {}
    places = {name: f"g{list(columns.groups).index(name)}" for name in groups}
    score = columns.alias(SCORE)
    sums = [f"sum({columns.alias(name)}) AS {columns.alias(name)}" for name in columns.values]
    # all columns at once, then added up over the others: groups are few, rows are many
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE grouped AS
            SELECT {", ".join(places.values())}, count(*) AS n, sum({score} * {score}) AS squares, {", ".join(sums)}
            FROM candidates GROUP BY ALL"""
    )
    means = ", ".join(f"sum({columns.alias(name)}) / sum(n)" for name in columns.values)
    found = {}
    for name, place in places.items():
        rows = con.execute(
            f"""SELECT {place}, sum(n), sum(squares) / sum(n), {means} FROM grouped
                GROUP BY {place} ORDER BY sum({score}) / sum(n) DESC, {place}"""
        ).fetchall()
        found[name] = [_group(columns, *row) for row in rows]
    return found


def _group(columns: Columns, value: str | None, count: int, squares: float, *means: float) -> dict[str, Any]:
    named = dict(zip(columns.values, means, strict=True))
    return {
        "value": value,
        "candidates": int(count),
        "mean_score": named[SCORE],
        "sd_score": max(squares - named[SCORE] ** 2, 0.0) ** 0.5,
        "mean_response_tokens": named[LENGTH],
        "mean_prompt_tokens": named["num_prompt_tokens"],
        "rewards": {name.removeprefix("rewards."): named[name] for name in columns.rewards},
        "gating": {name.removeprefix("gating."): named[name] for name in columns.gates},
    }


def length_bins(con: duckdb.DuckDBPyConnection, columns: Columns, lengths: Histogram) -> list[dict[str, Any]]:
    """Candidates in bins of about as many, by their response's tokens: mean length, mean score and its deviation."""
    length, score = columns.alias(LENGTH), columns.alias(SCORE)
    ends = sorted(
        {round(lengths.quantile(i / _LENGTH_BINS)) for i in range(1, _LENGTH_BINS)} - {round(lengths.high)}
    )
    place = " + ".join(f"({length} > {end})::INT" for end in ends) or "0"
    rows = con.execute(
        f"""SELECT {place} AS bin, min({length}), max({length}), count(*), avg({length}), avg({score}),
                stddev_pop({score}) FROM candidates GROUP BY bin ORDER BY bin"""
    ).fetchall()
    keys = ("from", "to", "candidates", "mean_tokens", "mean_score", "sd_score")
    return [dict(zip(keys, row[1:], strict=True)) for row in rows]
