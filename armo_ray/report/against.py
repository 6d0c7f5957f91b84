"""Compares outputs with older ones: as a whole, and by the values of a column."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import duckdb

from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import advice
from armo_ray.outputs.scores import Scores, check_models
from armo_ray.report.columns import SCORE, Columns, find_columns
from armo_ray.report.distributions import histograms, histograms_by, sample_bounds
from armo_ray.report.drift import Drift, DriftPer, PromptCounts, Side, ValueDrift, drift, nothing_scored
from armo_ray.report.groups import MOST_VALUES
from armo_ray.report.histograms import Bounds
from armo_ray.report.options import ReportOptions
from armo_ray.report.read import Committed, open_committed

_NAMED = 3  # columns that drifted, in a verdict on one value
_Sides = Mapping[str | None, Side]  # by the value of a column


def open_older(committed: Committed, against: Iterable[str]) -> Scores:
    """The older outputs as one. Raises ConfigError if they have no scores, or scores of another model."""
    older = open_committed(against).scores
    if not older.parts:
        raise ConfigError(f"against {', '.join(older.outputs)}: none of its candidates was scored")
    if committed.scores.parts:
        outputs = (older.outputs[0], committed.scores.outputs[0])
        check_models(outputs, (older.metadata, committed.scores.metadata))
    return older


def drift_from(
    con: duckdb.DuckDBPyConnection, older: Scores, scores: Scores, options: ReportOptions
) -> Drift:
    """The drift of scores from older ones. Raises ConfigError if one of them has no column --per."""
    against, limits = ", ".join(older.outputs), (options.max_psi, options.max_ks)
    if not scores.parts:
        return nothing_scored(against, limits)
    grouped = [_grouped(con, own, options.per) for own in (older, scores)] if options.per else []
    columns = find_columns(con, older, grouped=False)  # the two may keep different ones
    bounds = sample_bounds(con, columns, older)
    old, new = (histograms(con, columns, own, bounds) for own in (older, scores))
    sides = (_side(con, columns, older), _side(con, columns, scores))
    found = drift(against, old, new, sides, limits)
    if not options.per:
        return found
    pairs = list(zip(grouped, (older, scores), strict=True))
    return replace(found, per=_per(con, options.per, pairs, bounds, limits))


def _side(con: duckdb.DuckDBPyConnection, columns: Columns, scores: Scores) -> Side:
    """All candidates of one side."""
    return _sides(con, columns, scores, "NULL")[None]


def _sides(
    con: duckdb.DuckDBPyConnection, columns: Columns, scores: Scores, by: str
) -> dict[str | None, Side]:
    score = columns.alias(SCORE)
    rows = con.execute(
        f"""SELECT {by}, count(DISTINCT hash(prompt_id)), avg({score}), stddev_pop({score})
            FROM ({columns.view(scores.parts)}) GROUP BY 1"""
    ).fetchall()
    return {value: Side(int(prompts), mean, sd) for value, prompts, mean, sd in rows}


def _per(
    con: duckdb.DuckDBPyConnection,
    name: str,
    pairs: Sequence[tuple[Columns, Scores]],
    bounds: Mapping[str, Bounds],
    limits: tuple[float, float],
) -> DriftPer:
    """The drift of every value of a column, in one scan of each side."""
    before, after = (_sides(con, columns, own, "g0") for columns, own in pairs)
    if (count := len(before.keys() | after.keys())) > MOST_VALUES:
        raise ConfigError(f"per {name}: {count:,} values; at most {MOST_VALUES} can be compared")
    old, new = (histograms_by(con, columns, own, bounds, "g0") for columns, own in pairs)
    values = [_one_sided(value, before, after) for value in before.keys() ^ after.keys()]
    for value in before.keys() & after.keys():
        sides = (before[value], after[value])
        found = drift("", old[value], new[value], sides, limits)
        values.append(_value(value, PromptCounts(*(side.prompts for side in sides)), found))
    return DriftPer(name, sorted(values, key=_rank))


def _grouped(con: duckdb.DuckDBPyConnection, scores: Scores, name: str) -> Columns:
    """The columns of one side, with one to group by. Raises ConfigError if it has none of this name."""
    columns = find_columns(con, scores)
    if name not in columns.groups:
        raise ConfigError(
            f"per {name}: no column of {scores.outputs[0]} to group by; {advice(name, columns.groups)}"
        )
    return replace(columns, groups={name: columns.groups[name]})


def _value(value: str | None, prompts: PromptCounts, found: Drift) -> ValueDrift:
    many = len(found.drifted) > _NAMED
    verdict = f"drift in {len(found.drifted)} columns" if many else found.verdict
    return ValueDrift(value, prompts, found.mean_score, *found.worst(), found.drifted, verdict)


def _one_sided(value: str | None, before: _Sides, after: _Sides) -> ValueDrift:
    """A value that only the older or only the new outputs have."""
    counts = PromptCounts(*(side[value].prompts if value in side else 0 for side in (before, after)))
    return ValueDrift(
        value, counts, None, None, None, [], "only in the new" if counts.now else "only in the older"
    )


def _rank(own: ValueDrift) -> tuple[bool, float, str]:
    """Values that drifted first, by their PSI; then those of one side alone."""
    return (not own.drifted, -(own.psi.value if own.psi else 0.0), str(own.value))
