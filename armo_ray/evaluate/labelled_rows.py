"""Reads scores of labelled rows as items for `armo-ray evaluate`.

Items are in memory: about 150 bytes per candidate, and three times that while they are read.
"""

import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from armo_ray.errors import ConfigError
from armo_ray.evaluate.items import Flags, Floats, Index, Items
from armo_ray.evaluate.judged import NO_VERDICT, Contests, Counting, Verdicts, counting_of
from armo_ray.expressions.expressions import advice, quote
from armo_ray.outputs.database import database
from armo_ray.outputs.options import ScoresOptions
from armo_ray.outputs.schema import vectors
from armo_ray.outputs.scores import Scores, literal, scan
from armo_ray.storage.local_files import readable
from armo_ray.storage.parts import hive_values

logger = logging.getLogger(__name__)

_TIED = "coalesce(list_contains(flags, 'tie'), false)"  # SQL: neither response of the row is preferred
_ROLES = ("chosen", "rejected")
_KEYS = ("source", "source_row", "candidate", "role")
_READ = (*_KEYS, "score", "rewards", "num_response_tokens")
_UNREAD = ("unreadable_shard", "malformed_row")


@dataclass(frozen=True)
class _Candidates:
    """Rows of scores or of rejects, (N,), in any order; `without` says which have no verdict of a judge."""

    keys: pa.Table  # columns _KEYS
    values: Floats  # (N, V)
    tokens: Floats  # (N,) tokens of the response
    columns: Mapping[str, list[str | None]]
    without: Flags  # (N,)


def read_items(
    scores: Scores,
    options: ScoresOptions,
    needs: Sequence[str],
    takes: Sequence[str] = (),
    benchmark: str = "labelled",
) -> Items:
    """Every row of the outputs with its candidates, including those that could not be scored.

    Args:
        needs: columns of the scores that every item must have.
        takes: columns that items have if the scores do.
        benchmark: whose rules count the verdicts of a judge. Other than labelled: raise for rows that could not be
            read, and keep rows without both a chosen and a rejected response, which the benchmark's rules refuse.
            Otherwise both are logged and left out.

    Raises ConfigError if a column is missing, or a row's roles are not chosen and rejected.
    """
    strict = benchmark != "labelled"
    with database(options) as con:
        available = con.sql(scan(scores.parts)).columns
        if missing := [name for name in needs if name not in available]:
            raise ConfigError(
                f"{scores.outputs[0]}: no column {missing[0]}; {advice(missing[0], available)} "
                f"(to add it, score the files with --keep {' '.join(missing)})"
            )
        columns = [*needs, *(name for name in takes if name in available)]
        names = ", ".join(quote(name) for name in dict.fromkeys((*_READ, *columns)))
        scored = con.sql(f"SELECT {names} FROM ({scan(scores.parts)}) WHERE NOT {_TIED}").to_arrow_table()
        tied = con.sql(
            f"SELECT DISTINCT source, source_row FROM ({scan(scores.parts)}) WHERE {_TIED}"
        ).fetchall()
        files = ", ".join(literal(readable(part.uri)) for part in scores.rejects)
        rejected = con.sql(f"FROM read_parquet([{files}])").to_arrow_table() if files else None
        contests = _contests(con, scores) if "verdicts" in available else {}
    if tied and not scored.num_rows:
        raise ConfigError(
            f"{scores.outputs[0]}: all of its {len(tied)} rows are ties, without a preferred response"
        )
    tables = [_of_scores(scored, columns)]
    if rejected is not None:
        rejects = _rejected_responses(rejected, strict, set(tied))
        tables.append(_of_rejects(rejects, scores, columns, tables[0]))
    counting = counting_of(benchmark, scores.metadata, bool(contests))
    items = _items(tables, ("score", *scores.reward_names), columns, counting, contests)
    items = replace(items, ties=len(tied))
    return items if strict else _comparable(items)


def _contests(con: duckdb.DuckDBPyConnection, scores: Scores) -> Contests:
    """The mean value of a candidate in its contests with another."""
    rows = con.execute(
        f"""SELECT source || ' row ' || source_row, candidate, v.opponent, avg((sign(v.value::DOUBLE - 0.5) + 1) / 2)
            FROM (SELECT source, source_row, candidate, unnest(verdicts) AS v FROM ({scan(scores.parts)}))
            WHERE v.opponent IS NOT NULL AND v.value IS NOT NULL GROUP BY ALL"""
    ).fetchall()
    return {(where, own, other): value for where, own, other, value in rows}


def _comparable(items: Items) -> Items:
    """The items without the rows that lack a response to compare with, as filtered scores may have."""
    comparable = items.comparable()
    if left_out := len(items) - len(comparable):
        logger.warning(
            "left out %d of %d rows that lack a chosen or a rejected response", left_out, len(items)
        )
    if not len(comparable):
        raise ConfigError(f"{items.where[0]}: no row has both a chosen and a rejected response")
    return comparable


def _of_scores(table: pa.Table, columns: Sequence[str]) -> _Candidates:
    if others := table.filter(~pc.field("role").isin(_ROLES)).slice(0, 1).to_pylist():
        raise ConfigError(
            f"{others[0]['source']} row {others[0]['source_row']}: its role is {others[0]['role']}: only rows with "
            f"chosen and rejected responses can be evaluated"
        )
    score = table["score"].to_numpy().astype(np.float32)
    return _Candidates(
        table.select(_KEYS),
        np.concatenate((score[:, None], vectors(table)), axis=1),
        table["num_response_tokens"].to_numpy().astype(np.float64),
        {name: _texts(v for chunk in table[name].chunks for v in chunk.to_pylist()) for name in columns},
        np.zeros(table.num_rows, bool),
    )


def _texts(values: Iterable[Any]) -> list[str | None]:
    """The values as strings; equal ones share memory."""
    return [None if value is None else sys.intern(str(value)) for value in values]


def _rejected_responses(rejects: pa.Table, strict: bool, tied: Set[tuple[str, int]]) -> list[dict[str, Any]]:
    """The rejects that are responses, without rejects of rows and shards that could not be read at all."""
    rows = [r for r in rejects.to_pylist() if (r["source"], r["source_row"]) not in tied]
    responses = [r for r in rows if r["role"] in _ROLES]
    unread = [r for r in rows if r["role"] not in _ROLES or (strict and r["reason"] in _UNREAD)]
    if unread:
        first = unread[0]
        example = f"{first['source']} row {first['source_row']}: {first['reason']}: {first['detail']}"
        if strict:
            raise ConfigError(
                f"{len(unread)} rows or responses are not of this benchmark; the first: {example}"
            )
        logger.warning(
            "left out %d rows or shards that could not be read; the first: %s", len(unread), example
        )
    return responses


def _of_rejects(
    rows: list[dict[str, Any]], scores: Scores, columns: Sequence[str], scored: _Candidates
) -> _Candidates:
    """Rejects as candidates without scores; their columns are read from the raw rows."""
    kept = {name: column for run in scores.runs for name, column in run.identity["keep"].items()}
    read: dict[tuple[str, int], dict[str, Any]] = {}  # the columns of each row
    for r in rows:
        key = (r["source"], r["source_row"])
        if r["raw"] is not None or key not in read:
            raw = dict(hive_values(r["source"])) | json.loads(r["raw"] or "{}")
            read[key] = {name: raw.get(kept.get(name, name)) for name in columns}
    of_rejects = [read[r["source"], r["source_row"]] for r in rows]
    return _Candidates(
        pa.Table.from_pylist(rows, scored.keys.schema),
        np.full((len(rows), scored.values.shape[1]), np.nan, np.float32),
        np.full(len(rows), np.nan),
        {name: _texts(row.get(name) for row in of_rejects) for name in columns},
        np.array([r["reason"] in NO_VERDICT for r in rows], bool),
    )


def _items(
    tables: Sequence[_Candidates],
    names: tuple[str, ...],
    columns: Sequence[str],
    counting: Counting | None,
    contests: Contests,
) -> Items:
    keys = pa.concat_tables([table.keys for table in tables])
    order = pc.sort_indices(keys, [(name, "ascending") for name in _KEYS[:3]]).to_numpy()
    source = keys["source"].combine_chunks().dictionary_encode()
    shards, codes = source.dictionary.to_pylist(), source.indices.to_numpy()[order]
    row = keys["source_row"].to_numpy()[order]
    first = np.r_[True, (codes[1:] != codes[:-1]) | (row[1:] != row[:-1])]
    item = np.cumsum(first) - 1
    verdicts = None
    if counting is not None:
        without = np.concatenate([table.without for table in tables])[order]
        verdicts = Verdicts(without, keys["candidate"].to_numpy()[order], contests, counting)
    return Items(
        names,
        np.concatenate([table.values for table in tables])[order],
        np.concatenate([table.tokens for table in tables])[order],
        item,
        pc.equal(keys["role"], "chosen").to_numpy()[order],
        {name: _of_items([v for t in tables for v in t.columns[name]], order, item) for name in columns},
        tuple(
            f"{shards[c]} row {r}" for c, r in zip(codes[first].tolist(), row[first].tolist(), strict=True)
        ),
        verdicts=verdicts,
    )


def _of_items(values: list[str | None], order: Index, item: Index) -> tuple[str | None, ...]:
    """The first non-null value of each item: of a row's rejects, only one has the raw row with its columns."""
    ordered = np.array(values, object)[order]
    not_null = np.flatnonzero(pc.is_valid(pa.array(ordered, pa.string())))
    items, first = np.unique(item[not_null], return_index=True)
    first_values = np.full(item[-1] + 1, None, object)
    first_values[items] = ordered[not_null[first]]
    return tuple(first_values)
