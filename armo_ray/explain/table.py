"""An output as one table, for questions about all of its rows: which satisfy conditions, which share a prompt."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb

from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import parse
from armo_ray.outputs.database import database
from armo_ray.outputs.options import ScoresOptions
from armo_ray.outputs.rules import Rules, find_thresholds, with_thresholds
from armo_ray.outputs.scores import (
    Listed,
    Scores,
    columns_of,
    literal,
    read_run_and_manifest,
    scan,
    scores_of,
)
from armo_ray.storage import commits
from armo_ray.storage.store import Store

_NAMED = 5  # row ids that a list of further matches names


@dataclass(frozen=True)
class Matches:
    """The rows that satisfy conditions, in the order of the output: their number, and the ids of the first ones."""

    number: int
    explained: Sequence[str]
    left_out: Sequence[str]  # the first few of them


@dataclass(frozen=True)
class Sibling:
    """A candidate as one of those of its prompt."""

    row_id: str
    role: str
    score: float
    num_response_tokens: int | None  # None of a judge, which has no tokenizer
    rank: int  # by score, from 1; candidates with equal scores have the same


def matching(uri: str, where: Sequence[str], first: int) -> Matches:
    """The scored rows that satisfy all conditions. Raises ConfigError if there are none, or for a wrong expression."""
    with _opened(uri) as (con, scores):
        columns = columns_of(con, scores)
        rules = Rules(tuple(parse(text, columns) for text in where))
        relation = scan(scores.parts, numbered=True)
        joined = with_thresholds(relation, rules, find_thresholds(con, relation, rules))
        conditions = " AND ".join(condition.sql for condition in rules.conditions)
        rows = con.execute(
            f"SELECT row_id, count(*) OVER () FROM {joined} WHERE {conditions} "
            f"ORDER BY __part, __row LIMIT {first + _NAMED}"
        ).fetchall()
    if not rows:
        raise ConfigError(f"{uri}: none of the {scores.rows} scored rows satisfies {' and '.join(where)}")
    ids = [row_id for row_id, _ in rows]
    return Matches(rows[0][1], ids[:first], ids[first:])


def siblings(uri: str, prompt_id: str) -> list[Sibling]:
    """All scored candidates of a prompt, the best first; of equal ones, the first in the output."""
    with _opened(uri) as (con, scores):
        rows: list[Any] = con.execute(
            f"SELECT row_id, role, score, num_response_tokens, rank() OVER (ORDER BY score DESC) AS rank "
            f"FROM ({scan(scores.parts, numbered=True)}) WHERE prompt_id = {literal(prompt_id)} "
            f"ORDER BY rank, __part, __row"
        ).fetchall()
    return [Sibling(*row) for row in rows]


@contextmanager
def _opened(uri: str) -> Iterator[tuple[duckdb.DuckDBPyConnection, Scores]]:
    """A database, and what is committed of an output. Raises ConfigError if nothing was scored."""
    store = Store(uri)
    run, manifest = read_run_and_manifest(store)
    if manifest is not None:
        parts = list(manifest.parts)
    else:
        parts = [part for record in commits.read_commits(store, run=run) for part in record.parts]
    scores = scores_of([Listed(store.uri, run, parts)])
    if not scores.parts:
        raise ConfigError(f"{store.uri}: no candidate has been scored yet")
    with database(ScoresOptions.model_validate({"scores": [store.uri]})) as con:
        yield con, scores
