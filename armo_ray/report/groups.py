"""Candidates by the values of kept columns and directories."""

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

from armo_ray.report.columns import LENGTH, SCORE, Columns
from armo_ray.report.prompts import Winners

MOST_VALUES = 256  # of a column to group by
_FEWEST_ROWS = 5  # per value on average; a column with fewer identifies rows rather than groups
_MOST_GROUPS = 6


@dataclass(frozen=True)
class Group:
    """The candidates with one value of a column; rewards and gates are means."""

    value: str | None
    candidates: int
    mean_score: float
    sd_score: float
    mean_response_tokens: float | None
    mean_prompt_tokens: float | None
    rewards: dict[str, float]
    gating: dict[str, float]
    best_of_prompt: int  # prompts whose single best candidate is one of these


def chosen_groups(distinct: Mapping[str, int], rows: int) -> list[str]:
    """The columns with few values, but more than one; those with the fewest first."""
    most = min(MOST_VALUES, max(2, rows // _FEWEST_ROWS))
    fit = [name for name, count in distinct.items() if 2 <= count <= most]
    return sorted(fit, key=lambda name: (distinct[name], name))[:_MOST_GROUPS]


def by_group(
    con: duckdb.DuckDBPyConnection, columns: Columns, winners: Mapping[str, Winners]
) -> dict[str, list[Group]]:
    """The candidates of every value of the columns in `winners`, in one scan; the highest mean score first."""
    if not winners:
        return {}
    places = {name: f"g{list(columns.groups).index(name)}" for name in winners}
    score = columns.alias(SCORE)
    sums = [f"sum({columns.alias(name)}) AS {columns.alias(name)}" for name in columns.values]
    # by all columns at once, then summed over the others: groups are few, rows are many
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE grouped AS
            SELECT {", ".join(places.values())}, count(*) AS n, sum({score} * {score}) AS squares, {", ".join(sums)}
            FROM candidates GROUP BY ALL"""
    )
    means = ", ".join(f"sum({columns.alias(name)}) / sum(n)" for name in columns.values)
    groups = {}
    for name, place in places.items():
        rows = con.execute(
            f"""SELECT {place}, sum(n), sum(squares) / sum(n), {means} FROM grouped
                GROUP BY {place} ORDER BY sum({score}) / sum(n) DESC, {place}"""
        ).fetchall()
        groups[name] = [_group(columns, winners[name], *row) for row in rows]
    return groups


def _group(
    columns: Columns, winners: Winners, value: str | None, count: int, squares: float, *means: float
) -> Group:
    named = dict(zip(columns.values, means, strict=True))
    return Group(
        value=value,
        candidates=int(count),
        mean_score=named[SCORE],
        sd_score=max(squares - named[SCORE] ** 2, 0.0) ** 0.5,
        mean_response_tokens=named.get(LENGTH),
        mean_prompt_tokens=named.get("num_prompt_tokens"),
        rewards={name.removeprefix("rewards."): named[name] for name in columns.rewards},
        gating={name.removeprefix("gating."): named[name] for name in columns.gates},
        best_of_prompt=winners.get(value, 0),
    )
