"""SQL that finds the rows that pass rules: conditions, quantiles of the corpus, the best rows of every group.

Quantiles are exact: quantile q is the smallest value such that at least a fraction q of all values are not larger;
missing values do not count. Values are sorted once, on disk if they do not fit in memory: 10 million values in 20
groups take 11 s on 2 cores with 400 MB.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from armo_ray.expressions.expressions import Expression, quote

PART, ROW = "__part", "__row"  # columns of a numbered scan
# tolerance for a 1-based place in sorted order: in floating point, 0.1 * 30 is slightly more than 3
_SLACK = 1e-6


@dataclass(frozen=True)
class Top:
    """Keep the `number` rows of every group with the largest `by`; among equal rows, the first."""

    number: int
    group: tuple[Expression, ...]
    by: Expression


@dataclass(frozen=True)
class Rules:
    """All conditions must hold. Quantiles are over the whole corpus or, with `per`, over each of its groups."""

    conditions: tuple[Expression, ...]
    per: tuple[Expression, ...] = ()
    top: Top | None = None


@dataclass(frozen=True)
class Thresholds:
    """A temporary table of the quantiles of one value: a row per group, a column per quantile in `names`."""

    table: str
    names: tuple[str, ...]


def find_thresholds(con: duckdb.DuckDBPyConnection, relation: str, rules: Rules) -> list[Thresholds]:
    """Compute the quantiles that the conditions name, in one table for each expression they are quantiles of."""
    quantiles = {q.name: q for condition in rules.conditions for q in condition.quantiles}
    keys = "".join(f"__per{i}, " for i in range(len(rules.per)))
    selected = "".join(f"{e.sql} AS __per{i}, " for i, e in enumerate(rules.per))
    partition = f"PARTITION BY {keys.rstrip(', ')}" if keys else ""
    same = " AND ".join(f"p.__per{i} IS NOT DISTINCT FROM c.__per{i}" for i in range(len(rules.per)))
    thresholds: list[Thresholds] = []
    for value in dict.fromkeys(quantile.of for quantile in quantiles.values()):
        of_value = [quantile for quantile in quantiles.values() if quantile.of == value]
        values = ", ".join(
            f"min(v) FILTER (place >= {q.fraction!r} * n - {_SLACK}) AS {quote(q.name)}" for q in of_value
        )
        table = f"__thresholds{len(thresholds)}"
        # counts by an aggregate: as a window they would take as long as the rest
        con.execute(
            f"CREATE TEMP TABLE {table} AS "
            f"WITH v AS (FROM (SELECT {selected}{value} AS v FROM ({relation})) WHERE v IS NOT NULL), "
            f"c AS (SELECT {keys}count(*) AS n FROM v GROUP BY ALL), "
            f"p AS (SELECT *, row_number() OVER ({partition} ORDER BY v) AS place FROM v) "
            f"SELECT p.* EXCLUDE (v, place), {values} FROM p JOIN c ON {same or 'true'} GROUP BY ALL"
        )
        thresholds.append(Thresholds(table, tuple(q.name for q in of_value)))
    return thresholds


def with_thresholds(relation: str, rules: Rules, thresholds: Sequence[Thresholds]) -> str:
    """SQL of the rows of a relation, each joined with the quantiles of its group, which the conditions name."""
    joined = f"({relation}) AS rows"
    for entry in thresholds:
        keys = [f"{e.sql} IS NOT DISTINCT FROM {entry.table}.__per{i}" for i, e in enumerate(rules.per)]
        joined += f" LEFT JOIN {entry.table} ON {' AND '.join(keys) or 'true'}"
    return joined


def values_of(
    con: duckdb.DuckDBPyConnection, thresholds: Sequence[Thresholds], groups: int
) -> list[dict[str, Any]]:
    """The quantiles of at most `groups` groups, each a dict of its quantiles and, under `group`, its values."""
    values = []
    for entry in thresholds:
        made = con.table(entry.table)
        # JSON has no decimals or times, and reading times with zones in Python needs another package
        columns = ", ".join(
            f"{quote(name)}::VARCHAR" if set("([Z") & set(str(kind)) else quote(name)
            for name, kind in zip(made.columns, made.types, strict=True)
        )
        rows = con.execute(f"SELECT {columns} FROM {entry.table} ORDER BY ALL LIMIT {groups}").fetchall()
        first = len(rows[0]) - len(entry.names) if rows else 0
        values += [
            {"group": list(row[:first]), **dict(zip(entry.names, row[first:], strict=True))} for row in rows
        ]
    return values


def without_values(
    con: duckdb.DuckDBPyConnection, relation: str, rules: Rules, thresholds: Sequence[Thresholds]
) -> list[Expression]:
    """The conditions that are null in every row of a relation: they fail because a value is missing, always."""
    if not rules.conditions:
        return []
    nulls = ", ".join(f"bool_and(({condition.sql}) IS NULL)" for condition in rules.conditions)
    found = (
        con.execute(f"SELECT {nulls} FROM {with_thresholds(relation, rules, thresholds)}").fetchone() or ()
    )
    return [condition for condition, null in zip(rules.conditions, found, strict=True) if null]


def find_failures(
    con: duckdb.DuckDBPyConnection, relation: str, rules: Rules, thresholds: Sequence[Thresholds]
) -> Iterator[pa.RecordBatch]:
    """Part, row and `failed` of every row of a relation: bit i of `failed` is set if condition i does not hold.

    The bit after those of the conditions is set if all conditions hold but the row is not among the best of its group.
    """
    joined = with_thresholds(relation, rules, thresholds)
    bits = [f"CASE WHEN {e.sql} THEN 0 ELSE {1 << i} END" for i, e in enumerate(rules.conditions)]
    query = f"SELECT {PART}, {ROW}, ({' + '.join(bits) or '0'})::BIGINT AS failed"
    if rules.top is None:
        query = f"{query} FROM {joined}"
    else:
        groups = "".join(f", {e.sql} AS __group{i}" for i, e in enumerate(rules.top.group))
        partition = ", ".join(["failed = 0", *(f"__group{i}" for i in range(len(rules.top.group)))])
        place = f"row_number() OVER (PARTITION BY {partition} ORDER BY __by DESC NULLS LAST, {PART}, {ROW})"
        worse = f"failed = 0 AND {place} > {rules.top.number}"
        query = (
            f"SELECT {PART}, {ROW}, CASE WHEN {worse} THEN {1 << len(bits)} ELSE failed END AS failed "
            f"FROM ({query}, {rules.top.by.sql} AS __by{groups} FROM {joined})"
        )
    reader: pa.RecordBatchReader = con.sql(query).to_arrow_reader(1 << 16)
    yield from reader
