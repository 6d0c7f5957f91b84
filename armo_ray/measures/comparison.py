"""Agreement between two scores of the same candidates, as in `agreement`, for more candidates than fit in memory."""

from typing import Any

import duckdb


def compare(con: duckdb.DuckDBPyConnection, table: str) -> dict[str, Any]:
    """Compare the columns `old` and `new` of a table that also has the columns `prompt` and `place` (unique).

    Returns:
        `candidates`, their number; `spearman`, the rank correlation with mean ranks for ties (None if a column is
        constant); `pairs`, the number of pairs of candidates of one prompt; `pair_flips`, the fraction of the pairs
        not tied in `old` that change order; `prompts`, the number of prompts with several candidates; `top_changes`,
        the fraction of these prompts where no candidate is best by both; and `largest_difference`.
    """
    pairs, ordered, flips = _one(
        con,
        f"""SELECT count(*), count(*) FILTER (a.old <> b.old),
                count(*) FILTER (sign(a.old - b.old) * sign(a.new - b.new) < 0)
            FROM {table} a JOIN {table} b ON a.prompt = b.prompt AND a.place < b.place""",
    )
    prompts, changes = _one(
        con,
        f"""SELECT count(*), count(*) FILTER (NOT kept) FROM (
                SELECT bool_or(old = best_old AND new = best_new) AS kept FROM (
                    SELECT *, max(old) OVER prompts AS best_old, max(new) OVER prompts AS best_new
                    FROM {table} WINDOW prompts AS (PARTITION BY prompt))
                GROUP BY prompt HAVING count(*) > 1)""",
    )
    candidates, difference = _one(con, f"SELECT count(*), max(abs(new - old)) FROM {table}")
    return {
        "candidates": candidates,
        "spearman": _spearman(con, table),
        "pairs": pairs,
        "pair_flips": flips / max(ordered, 1),
        "prompts": prompts,
        "top_changes": changes / max(prompts, 1),
        "largest_difference": difference or 0.0,
    }


def _spearman(con: duckdb.DuckDBPyConnection, table: str) -> float | None:
    """Rank correlation. Tied values share the mean of their ranks."""
    ranks = ", ".join(
        f"rank() OVER (ORDER BY {name}) + (count(*) OVER (PARTITION BY {name}) - 1) / 2 AS {name}"
        for name in ("old", "new")
    )
    (correlation,) = _one(
        con,
        f"""SELECT CASE WHEN stddev_pop(old) * stddev_pop(new) > 0 THEN corr(old, new) END
            FROM (SELECT {ranks} FROM {table})""",
    )
    return None if correlation is None else float(correlation)


def _one(con: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    row = con.execute(query).fetchone()
    assert row is not None  # an aggregate always returns a row
    return tuple(row)
