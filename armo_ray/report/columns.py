"""The columns of scores that a report covers, as SQL.

The view `candidates` has a row for each scored candidate: `values` are v0, v1, ... (DOUBLE), `groups` g0, g1, ...
(VARCHAR), next to prompt_id, source, source_row, candidate, role, __part, __row and __output. The terms of the score,
if requested, are p0, p1, ... (DOUBLE).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from armo_ray.expressions.expressions import quote
from armo_ray.outputs.schema import RESERVED
from armo_ray.outputs.scores import Part, Scores, literal, paths_of, scan

SCORE, LENGTH = "score", "num_response_tokens"
_SIZES = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT")
_WHOLE = ("VARCHAR", "BOOLEAN", "DATE", *_SIZES, *(f"U{size}" for size in _SIZES))
_SAMPLED_PARTS = 32


@dataclass(frozen=True)
class Columns:
    """SQL expressions over a row of scores, by name."""

    values: Mapping[str, str]  # score, lengths if tokens were counted, rewards.NAME, gating.NAME
    terms: Mapping[str, str]  # the score is their sum; empty if it is not a sum
    groups: Mapping[str, str]  # kept columns and directories to group by

    def alias(self, name: str) -> str:
        return f"v{list(self.values).index(name)}"

    @property
    def has_lengths(self) -> bool:
        """Whether tokens were counted, which a judge does not do."""
        return LENGTH in self.values

    @property
    def rewards(self) -> list[str]:
        return [name for name in self.values if name.startswith("rewards.")]

    @property
    def gates(self) -> list[str]:
        return [name for name in self.values if name.startswith("gating.")]

    def terms_and_groups(self) -> list[str]:
        """SQL of p0, p1, ... and g0, g1, ..."""
        made = [f"({sql})::DOUBLE AS p{i}" for i, sql in enumerate(self.terms.values())]
        return made + self._group_columns()

    def _group_columns(self) -> list[str]:
        return [f"({sql})::VARCHAR AS g{i}" for i, sql in enumerate(self.groups.values())]

    def view(self, parts: Iterable[Part], terms: bool = False) -> str:
        """The SQL of the view `candidates`; DuckDB takes long to plan the terms, which few queries need."""
        made = [f"({sql})::DOUBLE AS v{i}" for i, sql in enumerate(self.values.values())]
        made += self.terms_and_groups() if terms else self._group_columns()
        fixed = "prompt_id, source, source_row, candidate, role, __part, __row, __output"
        return f"SELECT {', '.join(made)}, {fixed} FROM ({scan(parts, numbered=True)})"


def sampled(parts: Sequence[Part]) -> list[Part]:
    """A sample of the parts, evenly spaced."""
    return list(parts[:: max(1, len(parts) // _SAMPLED_PARTS)])


def find_columns(con: duckdb.DuckDBPyConnection, scores: Scores, grouped: bool = True) -> Columns:
    """The columns of outputs that hold at least one score; `grouped` includes those to group by."""
    names = scores.reward_names
    some = scan(sampled(scores.parts))
    counted, gated = con.execute(
        f"SELECT count({LENGTH}), count(gating.{quote(names[0])}) FROM ({some})"
    ).fetchall()[0]
    values = {name: name for name in (SCORE, *(("num_prompt_tokens", LENGTH) if counted else ()))}
    values |= {f"rewards.{name}": f"rewards.{quote(name)}" for name in names}
    if gated:
        values |= {f"gating.{name}": f"gating.{quote(name)}" for name in names}
    return Columns(values, _terms_of_score(scores.metadata, names), _groups(con, scores) if grouped else {})


def _terms_of_score(metadata: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Every reward times its coefficient, as in armo_ray.outputs.schema.coefficients, and the penalty for length."""
    if metadata.get("ensemble") in ("min", "mean-std"):
        return {}
    fixed, transform = metadata.get("fixed_weights"), metadata.get("reward_transform_matrix") or []
    factors = metadata.get("objective_factors") or [1.0] * len(names)
    terms = {}
    for i, name in enumerate(names):
        weight = (
            repr(float(fixed[i]))
            if fixed is not None
            else " + ".join(
                f"{w!r} * gating.{quote(n)}" for n, w in zip(names, transform[i], strict=True) if w
            )
            or "0"
        )
        terms[name] = f"rewards.{quote(name)} * {float(factors[i])!r} * ({weight})"
    if metadata.get("length_penalty"):
        terms[LENGTH] = f"-{float(metadata['length_penalty'])!r} * {LENGTH}"
    return terms


def _groups(con: duckdb.DuckDBPyConnection, scores: Scores) -> dict[str, str]:
    """Kept columns of text, whole numbers, booleans and dates, and lists of these with an entry for each candidate."""
    groups = {"role": "role"}
    if len(scores.outputs) > 1:
        names = "".join(f"WHEN {i} THEN {literal(uri)} " for i, uri in enumerate(scores.outputs))
        groups["output"] = f"CASE __output {names}END"
    for path, kind in paths_of(con, scores).items():
        if path[0] in RESERVED:
            continue
        sql, name = ".".join(map(quote, path)), ".".join(path)
        name = f"{name} (column)" if name in groups else name
        if kind in _WHOLE:
            groups[name] = sql
        elif kind.removesuffix("[]") in _WHOLE and _is_of_candidates(con, scores, sql):
            groups[name] = f"{sql}[candidate + 1]"
    return groups


def _is_of_candidates(con: duckdb.DuckDBPyConnection, scores: Scores, sql: str) -> bool:
    """Whether a list has an entry for each candidate of its row, as only rows with a list of responses can have."""
    if not all("responses" in (run.identity.get("layout") or {}) for run in scores.runs):
        return False
    rows = con.execute(f"SELECT bool_and(len({sql}) > candidate) FROM ({scan(sampled(scores.parts))})")
    return bool(rows.fetchall()[0][0])
