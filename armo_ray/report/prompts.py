"""Candidates within their prompts: spread, ties, the best of n, and which group has the best."""

from collections.abc import Sequence
from math import comb
from typing import Any

import duckdb

from armo_ray.report.columns import SCORE, Columns
from armo_ray.report.histograms import counted, fixed_bounds, histogram_of

_SLICE_ROWS = 4_000_000  # whose scores are held in lists at once
_MOST_CANDIDATES = 256  # of a prompt whose candidates the best of n is told of
_MOST_N = 64


def by_prompt(
    con: duckdb.DuckDBPyConnection, columns: Columns, groups: Sequence[str], rows: int, deviation: float
) -> dict[str, Any]:
    """Leaves the temporary tables `narrow`, a row a candidate, and `prompts`, a row a prompt."""
    places = [f"g{list(columns.groups).index(name)}" for name in groups]
    _gather(con, columns, places, rows)
    count, several, tied, equal, within, whole, total = con.execute(
        """SELECT count(*), count(*) FILTER (m > 1), count(*) FILTER (m > 1 AND s[m] = s[m - 1]),
                count(*) FILTER (m > 1 AND s[m] = s[1]),
                sum(m * variance) FILTER (m > 1) / sum(m) FILTER (m > 1), sum(m * variance) / sum(m),
                avg(s[m] - s[1]) FILTER (m > 1)
            FROM prompts"""
    ).fetchall()[0]
    sizes = con.execute("SELECT m, count(*) FROM prompts GROUP BY m ORDER BY m").fetchall()
    return {
        "prompts": count,
        "with_several": several,
        "sizes": [{"candidates": m, "prompts": n} for m, n in sizes[:200]],
        "tied_for_best": tied,
        "all_equal": equal,
        "sd_within": None if within is None else within**0.5,
        "share_of_variance": whole / deviation**2 if deviation else None,
        "mean_range": total,
        "ranges": _ranges(con, deviation) if several else None,
        "best_of_n": _best_of_n(con, dict(sizes)),
        "best": {name: _winners(con, i) for i, name in enumerate(groups)},
    }


def _gather(con: duckdb.DuckDBPyConnection, columns: Columns, places: Sequence[str], rows: int) -> None:
    kept = "".join(f", {place}" for place in places)
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE narrow AS
            SELECT hash(prompt_id) AS p, {columns.alias(SCORE)}::FLOAT AS s, __part, __row{kept} FROM candidates"""
    )
    winners = "".join(f", arg_max_null({place}, s) AS w{i}" for i, place in enumerate(places))
    slices = rows // _SLICE_ROWS + 1
    for k in range(slices):
        target = "INSERT INTO prompts" if k else "CREATE OR REPLACE TEMP TABLE prompts AS"
        con.execute(
            f"""{target} SELECT count(*) AS m, list_sort(list(s)) AS s, var_pop(s::DOUBLE) AS variance{winners}
                FROM narrow WHERE p % {slices} = {k} GROUP BY p"""
        )


def _ranges(con: duckdb.DuckDBPyConnection, deviation: float) -> dict[str, Any]:
    """How far the best and the worst score of a prompt lie apart."""
    bounds = fixed_bounds(0.0, 6 * deviation or 1.0)
    sql = counted("s[m]::DOUBLE - s[1]::DOUBLE", bounds)
    found = histogram_of(con.execute(f"SELECT {sql} FROM prompts WHERE m > 1").fetchall()[0], bounds)
    return {"quantiles": found.quantiles(), "histogram": found.to_json()}


def _best_of_n(con: duckdb.DuckDBPyConnection, sizes: dict[int, int]) -> dict[str, Any] | None:
    """The mean score of the best of n candidates, over all draws of n without return from those of a prompt.

    Of m scores in rising order the i-th is the best of n in C(i - 1, n - 1) of the C(m, n) draws. n goes as far as
    at least half of the prompts with several candidates have so many; the curve is of those prompts, but for those
    with more than `most_candidates`.
    """
    some = {m: count for m, count in sizes.items() if 1 < m <= _MOST_CANDIDATES}
    if not some:
        return None
    most, left = 2, sum(some.values())
    for m in sorted(some):
        if 2 * left >= sum(some.values()):
            most = min(m, _MOST_N)
        left -= some[m]
    prompts = sum(count for m, count in some.items() if m >= most)
    rows = con.execute(
        f"""SELECT m, i, sum(x::DOUBLE) FROM (
                SELECT m, unnest(s) AS x, generate_subscripts(s, 1) AS i
                FROM prompts WHERE m BETWEEN {most} AND {_MOST_CANDIDATES}) GROUP BY m, i"""
    ).fetchall()
    means = [
        sum(total * comb(i - 1, n - 1) / comb(m, n) for m, i, total in rows) / prompts
        for n in range(1, most + 1)
    ]
    return {
        "prompts": prompts,
        "n": list(range(1, most + 1)),
        "mean_score": means,
        "most_candidates": _MOST_CANDIDATES,
    }


def _winners(con: duckdb.DuckDBPyConnection, i: int) -> dict[str | None, int]:
    """Prompts whose one best candidate has each value; ties are nobody's."""
    rows = con.execute(f"SELECT w{i}, count(*) FROM prompts WHERE m > 1 AND s[m] > s[m - 1] GROUP BY w{i}")
    return dict(rows.fetchall())
