"""Rows to look at: the highest and lowest scores, and rejects of every reason."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from armo_ray.outputs.scores import Part, Scores, scan
from armo_ray.report.columns import Columns
from armo_ray.storage.shards import row_id

_MOST_CHARS = 700  # of a text
_TOP = 4  # largest terms of a score that are kept


@dataclass(frozen=True)
class Example:
    """A scored candidate; `parts` are the largest terms of its score, texts are None where they were not kept."""

    row_id: str
    source: str
    source_row: int
    candidate: int
    role: str
    score: float
    num_response_tokens: int
    flags: list[str]
    groups: dict[str, str]
    parts: dict[str, float]
    prompt: str | None
    response: str | None


@dataclass(frozen=True)
class Examples:
    """The candidates with the highest and the lowest scores."""

    highest: list[Example]
    lowest: list[Example]


@dataclass(frozen=True)
class RejectExample:
    """A reject. `raw` is None where an earlier reject of the row has it, row_id where a whole shard was rejected."""

    source: str
    source_row: int | None
    candidate: int | None
    role: str | None
    detail: str
    raw: str | None
    row_id: str | None


@dataclass(frozen=True)
class Rejects:
    """The rejects of one reason."""

    reason: str
    rejects: int
    examples: list[RejectExample]


def extremes(con: duckdb.DuckDBPyConnection, columns: Columns, scores: Scores, count: int) -> Examples:
    """The candidates with the highest and the lowest scores; of equal ones the first. Reads the table `narrow`."""

    def ranked(order: str) -> list[Example]:
        places = con.execute(
            f"SELECT __part, __row FROM narrow ORDER BY s {order}, __part, __row LIMIT {count}"
        ).fetchall()
        return [_example(con, columns, scores.parts[part], row) for part, row in places]

    return Examples(ranked("DESC"), ranked("ASC"))


def _example(con: duckdb.DuckDBPyConnection, columns: Columns, part: Part, row: int) -> Example:
    made = [f"({sql})::DOUBLE AS p{i}" for i, sql in enumerate(columns.terms.values())]
    made += [f"({sql})::VARCHAR AS g{i}" for i, sql in enumerate(columns.groups.values())]
    source = f"FROM ({scan([part], numbered=True)}) WHERE __row = {row}"
    keys = ("row_id", "source", "source_row", "candidate", "role", "score", "num_response_tokens", "flags")
    text = [name for name in ("prompt", "response") if name in con.sql(f"SELECT * {source}").columns]
    read = dict(
        zip(
            (*keys, *text),
            con.execute(f"SELECT {', '.join((*keys, *text))} {source}").fetchall()[0],
            strict=True,
        )
    )
    values = con.execute(f"SELECT {', '.join(made)} {source}").fetchall()[0]
    parts = dict(zip(columns.terms, values, strict=False))
    groups = dict(zip(columns.groups, values[len(columns.terms) :], strict=True))
    return Example(
        **{key: read[key] for key in keys},
        groups={name: value for name, value in groups.items() if name != "role" and value is not None},
        parts=dict(sorted(parts.items(), key=lambda entry: -abs(entry[1]))[:_TOP]),
        prompt=_text(read.get("prompt")),
        response=_text(read.get("response")),
    )


def _text(messages: Any) -> str | None:
    """The last message, shortened; dots before it stand for earlier messages."""
    if not isinstance(messages, list) or not messages:
        return None
    return ("... " if len(messages) > 1 else "") + short(messages[-1]["content"] or "")


def short(text: str) -> str:
    return text if len(text) <= _MOST_CHARS else text[:_MOST_CHARS] + " ..."


def rejects(con: duckdb.DuckDBPyConnection, parts: Sequence[Part], count: int) -> list[Rejects]:
    """The rejects by reason, the most frequent first, with the first `count` of each."""
    if not parts:
        return []
    # places first: raw rows may be long, and most are not shown
    rows = con.execute(
        f"""SELECT reason, count(*), min({{part: __part, row: __row}}, {max(count, 1)})
            FROM ({scan(parts, numbered=True)}) GROUP BY reason ORDER BY count(*) DESC, reason"""
    ).fetchall()
    return [
        Rejects(reason, total, [_reject(con, parts[p["part"]], p["row"]) for p in places[:count]])
        for reason, total, places in rows
    ]


def _reject(con: duckdb.DuckDBPyConnection, part: Part, row: int) -> RejectExample:
    names = ("source", "source_row", "candidate", "role", "detail", "raw")
    read = con.execute(
        f"SELECT {', '.join(names)} FROM ({scan([part], numbered=True)}) WHERE __row = {row}"
    ).fetchall()[0]
    source, source_row, candidate, role, detail, raw = read
    raw = None if raw is None else short(_plain(raw))
    trace = row_id(source, source_row, candidate)
    return RejectExample(source, source_row, candidate, role, short(detail or ""), raw, trace)


def _plain(raw: str) -> str:
    """JSON with its letters unescaped."""
    try:
        return json.dumps(json.loads(raw), ensure_ascii=False)
    except ValueError:
        return raw
