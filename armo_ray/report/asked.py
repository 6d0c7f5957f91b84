"""What was asked of a judge, from the commit records, and how far its verdicts agree with each other."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from armo_ray.judging.self_check import CHECKED
from armo_ray.outputs.schema import JUDGE_FIELDS
from armo_ray.outputs.scores import Scores, scan
from armo_ray.storage.store import Store

_BINS = 20
_MASS = "list_avg(list_transform(verdicts, lambda v: v.label_mass))"


@dataclass(frozen=True)
class Fractions:
    """Values in [0, 1] of candidates: `counts` of them in equal bins between `edges`."""

    candidates: int
    mean: float
    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class Asked:
    """Sums over the commit records; cost is in the unit of the prices given to the run.

    finish_reasons: replies by finish_reason.
    verdicts: agreement, order_flips and label_mass, those that some candidates have.
    check: the fields of judging.self_check.SelfCheck.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    finish_reasons: dict[str, int]
    verdicts: dict[str, Fractions]
    check: dict[str, Any] | None = None  # what the judge showed on the set of judge --verify, before the run


def asked(
    con: duckdb.DuckDBPyConnection,
    records: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    scores: Scores,
) -> Asked | None:
    """None if no judge gave the scores. Copied records, as of armo-ray filter, are those of the original run."""
    entries = [record["asked"] for record in records if "asked" in record]
    if not entries or any("made_by" in run for run in runs):
        return None
    total = {name: sum(entry[name] for entry in entries) for name in ("requests", "prompt_tokens")}
    reasons: Counter[str] = sum((Counter(entry.get("finish_reasons", {})) for entry in entries), Counter())
    return Asked(
        **total,
        completion_tokens=sum(entry["completion_tokens"] for entry in entries),
        cost=sum(entry["cost"] for entry in entries),
        finish_reasons=dict(reasons.most_common()),
        verdicts=_verdicts(con, scores) if scores.parts else {},
        check=Store(scores.outputs[0]).read_json(CHECKED) if len(scores.outputs) == 1 else None,
    )


def _verdicts(con: duckdb.DuckDBPyConnection, scores: Scores) -> dict[str, Fractions]:
    relation = scan(scores.parts)
    columns = {name: name for name in ("agreement", "order_flips")} | {"label_mass": _MASS}
    found = {}
    if JUDGE_FIELDS[0].name not in con.sql(relation).columns:
        return {}
    for name, sql in columns.items():
        rows = con.execute(
            f"""SELECT least(floor(x * {_BINS})::INT, {_BINS - 1}) AS bin, count(*), sum(x)
                FROM (SELECT ({sql})::DOUBLE AS x FROM ({relation})) WHERE x IS NOT NULL GROUP BY bin"""
        ).fetchall()
        if count := sum(n for _, n, _ in rows):
            bins = {at: n for at, n, _ in rows}
            found[name] = Fractions(
                count,
                sum(total for _, _, total in rows) / count,
                [i / _BINS for i in range(_BINS + 1)],
                [bins.get(i, 0) for i in range(_BINS)],
            )
    return found
