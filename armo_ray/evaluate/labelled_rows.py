"""Scores of labelled rows as items: what `armo-ray evaluate` judges.

Held in memory, about 150 bytes a candidate, and thrice that while they are read.
"""

import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from armo_ray.errors import ConfigError
from armo_ray.evaluate.items import Floats, Index, Items
from armo_ray.expressions.expressions import quote
from armo_ray.outputs.options import ScoresOptions
from armo_ray.outputs.schema import vectors
from armo_ray.outputs.scores import Scores, database, literal, scan
from armo_ray.storage.local_files import readable
from armo_ray.storage.parts import hive_values

logger = logging.getLogger(__name__)

_TIED = "coalesce(list_contains(flags, 'tie'), false)"  # of answers of which none is preferred
_ROLES = ("chosen", "rejected")
_KEYS = ("source", "source_row", "candidate", "role")
_READ = (*_KEYS, "score", "rewards", "num_response_tokens")
_UNREAD = ("unreadable_shard", "malformed_row")


@dataclass(frozen=True)
class _Candidates:
    """Rows of scores, or of rejects, in no order, (N,)."""

    keys: pa.Table  # of _KEYS
    values: Floats  # (N, V)
    tokens: Floats
    columns: Mapping[str, list[str | None]]


def read_items(
    scores: Scores,
    options: ScoresOptions,
    needs: Sequence[str],
    takes: Sequence[str] = (),
    strict: bool = False,
) -> Items:
    """Every row of the outputs with its candidates, those included that could not be scored.

    Args:
        needs: names of columns of the scores that every item carries.
        takes: of those that it carries where the scores have them.
        strict: refuse rows that could not be read, and keep those without a counterpart for the rules of the
            benchmark to refuse; else both are told and left out.

    Raises ConfigError where a column is missing, or a row has no chosen and rejected answers.
    """
    with database(options) as con:
        have = con.sql(scan(scores.parts)).columns
        if missing := [name for name in needs if name not in have]:
            raise ConfigError(
                f"{scores.outputs[0]}: no column {missing[0]}: score the files with --keep {' '.join(missing)}"
            )
        columns = [*needs, *(name for name in takes if name in have)]
        names = ", ".join(quote(name) for name in dict.fromkeys((*_READ, *columns)))
        scored = con.sql(f"SELECT {names} FROM ({scan(scores.parts)}) WHERE NOT {_TIED}").to_arrow_table()
        tied = con.sql(
            f"SELECT DISTINCT source, source_row FROM ({scan(scores.parts)}) WHERE {_TIED}"
        ).fetchall()
        files = ", ".join(literal(readable(part.uri)) for part in scores.rejects)
        rejected = con.sql(f"FROM read_parquet([{files}])").to_arrow_table() if files else None
    if tied and not scored.num_rows:
        raise ConfigError(
            f"{scores.outputs[0]}: no answer is preferred in any of its {len(tied)} rows: all are ties"
        )
    found = [_of_scores(scored, columns)]
    if rejected is not None:
        found.append(_of_rejects(_whole(rejected, strict, set(tied)), scores, columns, found[0]))
    items = replace(_items(found, ("score", *scores.reward_names), columns), ties=len(tied))
    return items if strict else _comparable(items)


def _comparable(items: Items) -> Items:
    """Without the rows that have no other answer to compare with, as where scores were filtered."""
    found = items.comparable()
    if left := len(items) - len(found):
        logger.warning("%d of %d rows lack a chosen or a rejected answer and are left out", left, len(items))
    if not len(found):
        raise ConfigError(f"{items.where[0]}: no row has both a chosen and a rejected answer")
    return found


def _of_scores(table: pa.Table, columns: Sequence[str]) -> _Candidates:
    if others := table.filter(~pc.field("role").isin(_ROLES)).slice(0, 1).to_pylist():
        raise ConfigError(
            f"{others[0]['source']} row {others[0]['source_row']}: its role is {others[0]['role']}: only rows with "
            f"chosen and rejected answers can be evaluated"
        )
    score = table["score"].to_numpy().astype(np.float32)
    return _Candidates(
        table.select(_KEYS),
        np.concatenate((score[:, None], vectors(table)), axis=1),
        table["num_response_tokens"].to_numpy().astype(np.float64),
        {name: _texts(v for chunk in table[name].chunks for v in chunk.to_pylist()) for name in columns},
    )


def _texts(values: Iterable[Any]) -> list[str | None]:
    """Of few distinct values, each held once."""
    return [None if value is None else sys.intern(str(value)) for value in values]


def _whole(rejects: pa.Table, strict: bool, tied: Set[tuple[str, int]]) -> list[dict[str, Any]]:
    """The rejects that are answers of a row; others stand for rows and shards that could not be read at all."""
    rows = [r for r in rejects.to_pylist() if (r["source"], r["source_row"]) not in tied]
    answers = [r for r in rows if r["role"] in _ROLES]
    unread = [r for r in rows if r["role"] not in _ROLES or (strict and r["reason"] in _UNREAD)]
    if unread:
        first = unread[0]
        told = f"{first['source']} row {first['source_row']}: {first['reason']}: {first['detail']}"
        if strict:
            raise ConfigError(f"{len(unread)} rows or answers are not of this benchmark, the first: {told}")
        logger.warning("%d rows or shards that could not be read are left out: %s", len(unread), told)
    return answers


def _of_rejects(
    rows: list[dict[str, Any]], scores: Scores, columns: Sequence[str], scored: _Candidates
) -> _Candidates:
    """Without scores; their columns are those of the rows as they were read."""
    kept = {name: column for run in scores.runs for name, column in run.identity["keep"].items()}
    read: dict[tuple[str, int], dict[str, Any]] = {}  # what is carried of each row
    for r in rows:
        key = (r["source"], r["source_row"])
        if r["raw"] is not None or key not in read:
            found = dict(hive_values(r["source"])) | json.loads(r["raw"] or "{}")
            read[key] = {name: found.get(kept.get(name, name)) for name in columns}
    carried = [read[r["source"], r["source_row"]] for r in rows]
    return _Candidates(
        pa.Table.from_pylist(rows, scored.keys.schema),
        np.full((len(rows), scored.values.shape[1]), np.nan, np.float32),
        np.full(len(rows), np.nan),
        {name: _texts(found.get(name) for found in carried) for name in columns},
    )


def _items(parts: Sequence[_Candidates], names: tuple[str, ...], columns: Sequence[str]) -> Items:
    keys = pa.concat_tables([part.keys for part in parts])
    order = pc.sort_indices(keys, [(name, "ascending") for name in _KEYS[:3]]).to_numpy()
    source = keys["source"].combine_chunks().dictionary_encode()
    shards, codes = source.dictionary.to_pylist(), source.indices.to_numpy()[order]
    row = keys["source_row"].to_numpy()[order]
    first = np.r_[True, (codes[1:] != codes[:-1]) | (row[1:] != row[:-1])]
    item = np.cumsum(first) - 1
    return Items(
        names,
        np.concatenate([part.values for part in parts])[order],
        np.concatenate([part.tokens for part in parts])[order],
        item,
        pc.equal(keys["role"], "chosen").to_numpy()[order],
        {name: _carried([v for part in parts for v in part.columns[name]], order, item) for name in columns},
        tuple(
            f"{shards[c]} row {r}" for c, r in zip(codes[first].tolist(), row[first].tolist(), strict=True)
        ),
    )


def _carried(values: list[str | None], order: Index, item: Index) -> tuple[str | None, ...]:
    """The first value of each item that is not null: of rejects alone those that were written down have one."""
    ordered = np.array(values, object)[order]
    known = np.flatnonzero(pc.is_valid(pa.array(ordered, pa.string())))
    items, first = np.unique(item[known], return_index=True)
    found = np.full(item[-1] + 1, None, object)
    found[items] = ordered[known[first]]
    return tuple(found)
