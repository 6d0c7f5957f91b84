"""Rows to look at: the highest and lowest scores, and rejects of every reason."""

import json
from collections.abc import Sequence
from typing import Any

import duckdb

from armo_ray.outputs.scores import Part, Scores, scan
from armo_ray.report.columns import Columns
from armo_ray.storage.shards import row_id

_MOST_CHARS = 700  # of a text
_TOP = 4  # parts of a score that are told


def extremes(con: duckdb.DuckDBPyConnection, columns: Columns, scores: Scores, count: int) -> dict[str, Any]:
    """The candidates with the highest and the lowest scores; of equal ones the first. Reads the table `narrow`."""
    found = {}
    for name, order in (("highest", "DESC"), ("lowest", "ASC")):
        places = con.execute(
            f"SELECT __part, __row FROM narrow ORDER BY s {order}, __part, __row LIMIT {count}"
        ).fetchall()
        found[name] = [_example(con, columns, scores.parts[part], row) for part, row in places]
    return found


def _example(con: duckdb.DuckDBPyConnection, columns: Columns, part: Part, row: int) -> dict[str, Any]:
    made = [f"({sql})::DOUBLE AS p{i}" for i, sql in enumerate(columns.parts.values())]
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
    parts = dict(zip(columns.parts, values, strict=False))
    groups = dict(zip(columns.groups, values[len(columns.parts) :], strict=True))
    return {
        **{key: read[key] for key in keys},
        "groups": {name: value for name, value in groups.items() if name != "role" and value is not None},
        "parts": dict(sorted(parts.items(), key=lambda entry: -abs(entry[1]))[:_TOP]),
        "prompt": _text(read.get("prompt")),
        "response": _text(read.get("response")),
    }


def _text(messages: Any) -> str | None:
    """The last message, and a sign where there are more or it is long."""
    if not isinstance(messages, list) or not messages:
        return None
    return ("... " if len(messages) > 1 else "") + short(messages[-1]["content"] or "")


def short(text: str) -> str:
    return text if len(text) <= _MOST_CHARS else text[:_MOST_CHARS] + " ..."


def rejects(con: duckdb.DuckDBPyConnection, parts: Sequence[Part], count: int) -> list[dict[str, Any]]:
    """Of every reason: how many rejects it has, and the first of them."""
    if not parts:
        return []
    # places first: the rows as they were read may be long, and most are not shown
    rows = con.execute(
        f"""SELECT reason, count(*), min({{part: __part, row: __row}}, {max(count, 1)})
            FROM ({scan(parts, numbered=True)}) GROUP BY reason ORDER BY count(*) DESC, reason"""
    ).fetchall()
    return [
        {
            "reason": reason,
            "rejects": total,
            "examples": [_reject(con, parts[p["part"]], p["row"]) for p in places[:count]],
        }
        for reason, total, places in rows
    ]


def _reject(con: duckdb.DuckDBPyConnection, part: Part, row: int) -> dict[str, Any]:
    names = ("source", "source_row", "candidate", "role", "detail", "raw")
    read = con.execute(
        f"SELECT {', '.join(names)} FROM ({scan([part], numbered=True)}) WHERE __row = {row}"
    ).fetchall()[0]
    found = dict(zip(names, read, strict=True))
    found["row_id"] = row_id(found["source"], found["source_row"], found["candidate"])
    found["detail"] = short(found["detail"] or "")
    found["raw"] = None if found["raw"] is None else short(_plain(found["raw"]))
    return found


def _plain(raw: str) -> str:
    """JSON with its letters as they are, for people."""
    try:
        return json.dumps(json.loads(raw), ensure_ascii=False)
    except ValueError:
        return raw
