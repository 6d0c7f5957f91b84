"""Candidates within their prompts: spread, ties, best of n, and which group wins."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import duckdb

from armo_ray.report.columns import SCORE, Columns
from armo_ray.report.histograms import Bins, counted, fixed_bounds, histogram_of

_SLICE_ROWS = 4_000_000  # candidates whose scores are in memory at once
_MOST_CANDIDATES = 256  # of a prompt; larger ones do not count for best of n
_MOST_N = 64

Winners = dict[str | None, int]  # prompts won by each value of a column


@dataclass(frozen=True)
class PromptSize:
    """How many prompts have this many candidates."""

    candidates: int
    prompts: int


@dataclass(frozen=True)
class Ranges:
    """Best minus worst score of a prompt."""

    quantiles: dict[str, float]
    histogram: Bins


@dataclass(frozen=True)
class BestOfN:
    """Mean score of the best of n[i] candidates of a prompt."""

    prompts: int
    n: list[int]
    mean_score: list[float]
    most_candidates: int  # of a prompt; larger ones do not count


@dataclass(frozen=True)
class Prompts:
    """Ties, deviation and range are over the prompts with several candidates, share_of_variance is over all."""

    prompts: int
    with_several: int
    sizes: list[PromptSize]
    tied_for_best: int
    all_equal: int
    sd_within: float | None
    share_of_variance: float | None
    mean_range: float | None
    ranges: Ranges | None
    best_of_n: BestOfN | None


def by_prompt(
    con: duckdb.DuckDBPyConnection, columns: Columns, groups: Sequence[str], rows: int, deviation: float
) -> tuple[Prompts, dict[str, Winners]]:
    """The prompts, and the winners of each group column.

    Leaves the temporary tables `narrow`, a row per candidate, and `prompts`, a row per prompt.
    """
    places = [f"g{list(columns.groups).index(name)}" for name in groups]
    _gather(con, columns, places, rows)
    count, several, tied, equal, within, whole, mean_range = con.execute(
        """SELECT count(*), count(*) FILTER (m > 1), count(*) FILTER (m > 1 AND s[m] = s[m - 1]),
                count(*) FILTER (m > 1 AND s[m] = s[1]),
                sum(m * variance) FILTER (m > 1) / sum(m) FILTER (m > 1), sum(m * variance) / sum(m),
                avg(s[m] - s[1]) FILTER (m > 1)
            FROM prompts"""
    ).fetchall()[0]
    sizes = con.execute("SELECT m, count(*) FROM prompts GROUP BY m ORDER BY m").fetchall()
    prompts = Prompts(
        prompts=count,
        with_several=several,
        sizes=[PromptSize(m, n) for m, n in sizes[:200]],
        tied_for_best=tied,
        all_equal=equal,
        sd_within=None if within is None else within**0.5,
        share_of_variance=whole / deviation**2 if deviation else None,
        mean_range=mean_range,
        ranges=_ranges(con, deviation) if several else None,
        best_of_n=_best_of_n(con, dict(sizes)),
    )
    return prompts, {name: _winners(con, i) for i, name in enumerate(groups)}


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


def _ranges(con: duckdb.DuckDBPyConnection, deviation: float) -> Ranges:
    bounds = fixed_bounds(0.0, 6 * deviation or 1.0)
    sql = f"SELECT {counted('s[m]::DOUBLE - s[1]::DOUBLE', 'ends')} FROM prompts WHERE m > 1"
    ranges = histogram_of(con.execute(sql, {"ends": bounds.all.tolist()}).fetchall()[0], bounds)
    return Ranges(ranges.quantiles(), ranges.bins())


def _best_of_n(con: duckdb.DuckDBPyConnection, sizes: dict[int, int]) -> BestOfN | None:
    """The mean score of the best of n candidates, over all draws of n candidates of a prompt without replacement.

    Of m scores in ascending order, the i-th is the best of n in C(i - 1, n - 1) of the C(m, n) draws. The largest n is
    one that at least half of the prompts with several candidates reach; the curve is over these prompts, except
    those with more than `most_candidates`.
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
    return BestOfN(prompts, list(range(1, most + 1)), means, _MOST_CANDIDATES)


def _winners(con: duckdb.DuckDBPyConnection, i: int) -> Winners:
    """The prompts whose single best candidate has each value; a tie counts for none."""
    rows = con.execute(f"SELECT w{i}, count(*) FROM prompts WHERE m > 1 AND s[m] > s[m - 1] GROUP BY w{i}")
    return dict(rows.fetchall())
