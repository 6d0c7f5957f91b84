"""Scores of labelled rows as items: what `armo-ray evaluate` judges. Held in memory, about 100 bytes a candidate."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from armo_ray.curation.expressions import quote
from armo_ray.curation.options import ScoresOptions
from armo_ray.curation.scores import Scores, database, literal, scan
from armo_ray.errors import ConfigError
from armo_ray.evaluation.items import Floats, Items
from armo_ray.schema import vectors
from armo_ray.storage.opened import readable
from armo_ray.storage.parts import hive_values

logger = logging.getLogger(__name__)

_ROLES = ("chosen", "rejected")
_READ = ("source", "source_row", "candidate", "role", "score", "rewards", "num_response_tokens")
_UNREAD = ("unreadable_shard", "malformed_row")


@dataclass(frozen=True)
class _Candidates:
    """Rows of scores, or of rejects, in no order, (N,)."""

    source: list[str]
    row: list[int]
    candidate: list[int]
    correct: list[bool]
    values: Floats  # (N, V)
    tokens: Floats
    columns: dict[str, list[Any]]


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
        strict: refuse rows that could not be read; else they are told and left out.

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
        scored = con.sql(f"SELECT {names} FROM ({scan(scores.parts)})").to_arrow_table()
        files = ", ".join(literal(readable(part.uri)) for part in scores.rejects)
        rejected = con.sql(f"FROM read_parquet([{files}])").to_arrow_table() if files else None
    found = [_of_scores(scored, columns)]
    if rejected is not None:
        found.append(_of_rejects(_whole(rejected, strict), scores, columns, found[0].values.shape[1]))
    return _items(found, ("score", *scores.reward_names), columns)


def _of_scores(table: pa.Table, columns: Sequence[str]) -> _Candidates:
    roles = table["role"].to_pylist()
    if others := set(roles) - set(_ROLES):
        at = next(i for i, role in enumerate(roles) if role in others)
        raise ConfigError(
            f"{table['source'][at]} row {table['source_row'][at]}: its role is {roles[at]}: only rows with chosen and "
            f"rejected answers can be evaluated"
        )
    score = table["score"].to_numpy().astype(np.float32)
    return _Candidates(
        table["source"].to_pylist(),
        table["source_row"].to_pylist(),
        table["candidate"].to_pylist(),
        [role == "chosen" for role in roles],
        np.concatenate((score[:, None], vectors(table)), axis=1),
        table["num_response_tokens"].to_numpy().astype(np.float64),
        {name: table[name].to_pylist() for name in columns},
    )


def _whole(rejects: pa.Table, strict: bool) -> list[dict[str, Any]]:
    """The rejects that are answers of a row; others stand for rows and shards that could not be read at all."""
    rows: list[dict[str, Any]] = rejects.to_pylist()
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
    rows: list[dict[str, Any]], scores: Scores, columns: Sequence[str], width: int
) -> _Candidates:
    """Without scores; their columns are those of the rows as they were read."""
    kept = {name: column for run in scores.runs for name, column in run["identity"]["keep"].items()}
    raw = {(r["source"], r["source_row"]): json.loads(r["raw"]) for r in rows if r["raw"] is not None}
    read = [dict(hive_values(r["source"])) | raw.get((r["source"], r["source_row"]), {}) for r in rows]
    return _Candidates(
        [r["source"] for r in rows],
        [r["source_row"] for r in rows],
        [r["candidate"] for r in rows],
        [r["role"] == "chosen" for r in rows],
        np.full((len(rows), width), np.nan, np.float32),
        np.full(len(rows), np.nan),
        {name: [found.get(kept.get(name, name)) for found in read] for name in columns},
    )


def _items(parts: Sequence[_Candidates], names: tuple[str, ...], columns: Sequence[str]) -> Items:
    source = np.array([s for part in parts for s in part.source])
    row = np.array([r for part in parts for r in part.row], np.int64)
    candidate = np.array([c for part in parts for c in part.candidate], np.int64)
    order = np.lexsort((candidate, row, source))
    source, row = source[order], row[order]
    first = np.r_[True, (source[1:] != source[:-1]) | (row[1:] != row[:-1])]
    starts = np.flatnonzero(first)
    carried = _carried(parts, columns, order, starts)
    return Items(
        names,
        np.concatenate([part.values for part in parts])[order],
        np.concatenate([part.tokens for part in parts])[order],
        np.cumsum(first) - 1,
        np.array([c for part in parts for c in part.correct], bool)[order],
        carried,
        tuple(f"{s} row {r}" for s, r in zip(source[starts], row[starts].tolist(), strict=True)),
    )


def _carried(
    parts: Sequence[_Candidates], columns: Sequence[str], order: Any, starts: Any
) -> Mapping[str, tuple[Any, ...]]:
    """The first value of each item that is not null: of rejects alone those that were written down have one."""
    found = {}
    for name in columns:
        values = np.array([None, *(v for part in parts for v in part.columns[name])], object)[1:][order]
        groups = np.split(values, starts[1:])
        found[name] = tuple(next((v for v in group if v is not None), None) for group in groups)
    return found
