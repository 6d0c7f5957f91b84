"""Rows to look at: the highest and lowest scores, and rejects for every reason."""

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
_KEYS = ("row_id", "source", "source_row", "candidate", "role", "score", "num_response_tokens", "flags")
_TEXTS = ("prompt", "response")


@dataclass(frozen=True)
class Example:
    """A scored candidate; `parts` are the largest terms of its score; texts are None if they were not kept."""

    row_id: str
    source: str
    source_row: int
    candidate: int
    role: str
    score: float
    num_response_tokens: int | None
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
    """A reject. `raw` is None if an earlier reject of the row has it, row_id if a whole shard was rejected."""

    source: str
    source_row: int | None
    candidate: int | None
    role: str | None
    detail: str
    raw: str | None
    row_id: str | None


@dataclass(frozen=True)
class Rejects:
    """The rejects for one reason."""

    reason: str
    rejects: int
    examples: list[RejectExample]


def extremes(con: duckdb.DuckDBPyConnection, columns: Columns, scores: Scores, count: int) -> Examples:
    """The candidates with the highest and the lowest scores; among equals, the first. Reads the table `narrow`."""

    def ranked(order: str) -> list[tuple[int, int]]:
        return con.execute(
            f"SELECT __part, __row FROM narrow ORDER BY s {order}, __part, __row LIMIT {count}"
        ).fetchall()

    highest, lowest = ranked("DESC"), ranked("ASC")
    examples = _examples(con, columns, scores.parts, {*highest, *lowest})
    return Examples([examples[place] for place in highest], [examples[place] for place in lowest])


def _examples(
    con: duckdb.DuckDBPyConnection, columns: Columns, parts: Sequence[Part], places: set[tuple[int, int]]
) -> dict[tuple[int, int], Example]:
    """The candidates in these rows of these parts, in one query, because its terms take long to plan."""
    if not places:
        return {}
    used = sorted({part for part, _ in places})
    source = scan([parts[part] for part in used], numbered=True)
    names = [*_KEYS, *(name for name in _TEXTS if name in con.sql(source).columns)]
    numbers = {row for _, row in places}
    wanted = ", ".join(f"({used.index(part)}, {row})" for part, row in places)
    rows = con.execute(
        f"""SELECT __part, __row, {", ".join((*names, *columns.terms_and_groups()))} FROM ({source})
            WHERE __row IN ({", ".join(map(str, numbers))}) AND (__part, __row) IN ({wanted})"""
    ).fetchall()
    return {
        (used[part], row): _example(columns, dict(zip(names, values, strict=False)), values[len(names) :])
        for part, row, *values in rows
    }


def _example(columns: Columns, read: dict[str, Any], terms_and_groups: Sequence[Any]) -> Example:
    parts = dict(zip(columns.terms, terms_and_groups, strict=False))
    groups = dict(zip(columns.groups, terms_and_groups[len(columns.terms) :], strict=True))
    return Example(
        **{key: read[key] for key in _KEYS},
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
    """JSON with its non-ASCII characters unescaped."""
    try:
        return json.dumps(json.loads(raw), ensure_ascii=False)
    except ValueError:
        return raw
