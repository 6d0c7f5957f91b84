"""`armo-ray filter`: keeps the rows of scores that pass all rules, in their order and with all columns."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from armo_ray.curate import derived_output
from armo_ray.curate.grown_output import lacking_units, output_of
from armo_ray.curate.options import FilterOptions
from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import Expression, name_of, parse, quote
from armo_ray.formatting.tables import markdown_table
from armo_ray.outputs.database import database
from armo_ray.outputs.rules import (
    PART,
    ROW,
    Rules,
    Top,
    find_failures,
    find_thresholds,
    values_of,
    without_values,
)
from armo_ray.outputs.scores import Scores, columns_of, open_scores, paths_of, scan
from armo_ray.outputs.text import find_sources
from armo_ray.storage.json_files import to_json
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)

_ROWS = "__rows"  # name of a temporary table
_MAX_GROUPS = 100  # groups whose thresholds rules.json lists


@dataclass(frozen=True)
class Selection:
    """Which rows pass, and how many rows fail which rules."""

    kept: Mapping[str, npt.NDArray[np.bool_]]  # by part, whether each of its rows passes
    patterns: Mapping[int, int]  # rows by the bits of the rules that they fail; 0 passes
    thresholds: Sequence[Mapping[str, Any]]
    without_values: Sequence[Expression] = ()  # conditions that are null in every row


def run(options: FilterOptions) -> None:
    """Filter complete outputs of one model. Raises ConfigError if an option is wrong or no row passes."""
    if not options.where and options.top_k is None:
        raise ConfigError("nothing to filter by: give --where or --top-k")
    scores = open_scores(options.scores, options.partition)
    with database(options) as con:
        rules = parse_rules(options, columns_of(con, scores))
        if options.append:
            _check_rows_alone(rules)
        with output_of(options, "filter") as store:
            _filter(con, options, scores, rules, store)


def _filter(
    con: duckdb.DuckDBPyConnection, options: FilterOptions, scores: Scores, rules: Rules, store: Store
) -> None:
    """Write the rows that pass."""
    lacking = lacking_units(options, scores, store)
    if lacking is None:
        return
    scores, done = lacking
    reads_text = options.text and not scores.has_text
    sources = find_sources(scores, _sources(con, scores) if done else None) if reads_text else {}
    selection = select(con, scores, rules)
    counts = count_by_rule(options, selection.patterns)
    print(_markdown(counts))
    missing = _missing(selection)
    if not selection.patterns.get(0) and not options.append:
        raise ConfigError(f"none of the {scores.rows} rows passes{missing and f': {missing}'}")
    if missing:
        logger.warning("%s", missing)
    made = {"command": "filter", "options": options.model_dump(mode="json"), "scores": scores.outputs}
    fingerprint = derived_output.begin(scores, store, made, {"keep_text": True} if options.text else {})
    packed = {uri: np.packbits(kept).tobytes() for uri, kept in selection.kept.items()}
    change = derived_output.Change(
        kept=packed, sources=sources, fingerprint=fingerprint, format=options.format
    )
    derived_output.rewrite(scores, store, options, change, done)
    if scores.parts:
        store.write("rules.json", to_json({"rules": counts, "thresholds": selection.thresholds}))
    about = f"{selection.patterns.get(0, 0)} of {scores.rows} rows passed.\n\n{_markdown(counts)}"
    if options.append:
        about = f"The output grows with `--append`. Of the rows that were added last, {about}"
    derived_output.finish(store, options, "Scores that passed a filter", about)


def _sources(con: duckdb.DuckDBPyConnection, scores: Scores) -> set[str]:
    """The URIs of the shards of the rows of scores."""
    if not scores.parts:
        return set()
    return {uri for (uri,) in con.sql(f"SELECT DISTINCT source FROM ({scan(scores.parts)})").fetchall()}


def _check_rows_alone(rules: Rules) -> None:
    """Raises ConfigError if whether a row passes depends on rows that other increments hold."""
    if rules.top is not None or any(condition.quantiles for condition in rules.conditions):
        raise ConfigError(
            "--append: quantiles and --top-k depend on all rows: give numbers, or filter every night into an output of "
            "its own"
        )


def parse_rules(options: FilterOptions, columns: Mapping[str, str]) -> Rules:
    """The rules that the options ask for."""
    top = None
    if options.top_k is not None:
        groups = tuple(parse(text, columns, None) for text in options.group)
        top = Top(options.top_k, groups, parse(options.by, columns, "number"))
    return Rules(
        tuple(parse(text, columns) for text in options.where),
        tuple(parse(text, columns, None) for text in options.per),
        top,
    )


def select(con: duckdb.DuckDBPyConnection, scores: Scores, rules: Rules) -> Selection:
    """Find the rows that pass. Reads only the columns that the rules name; memory is one byte per row."""
    if not scores.parts:
        return Selection({}, {}, ())
    relation = _relation(con, scores, rules)
    thresholds = find_thresholds(con, relation, rules)
    ends = np.cumsum([part.rows for part in scores.parts])
    starts = ends - [part.rows for part in scores.parts]
    kept = np.zeros(scores.rows, bool)
    patterns: Counter[int] = Counter()
    for batch in find_failures(con, relation, rules, thresholds):
        part, row, failed = (batch[name].to_numpy() for name in (PART, ROW, "failed"))
        if (beyond := starts[part] + row >= ends[part]).any():
            uri = scores.parts[part[beyond][0]].uri
            raise RuntimeError(f"{uri}: more rows than its manifest says. Check it with armo-ray verify")
        kept[starts[part] + row] = failed == 0
        distinct, counts = np.unique(failed, return_counts=True)
        patterns.update(dict(zip(distinct.tolist(), counts.tolist(), strict=True)))
    by_part = dict(zip((part.uri for part in scores.parts), np.split(kept, ends[:-1]), strict=True))
    missing = () if patterns.get(0) else without_values(con, relation, rules, thresholds)
    con.execute(f"DROP TABLE IF EXISTS {_ROWS}")
    return Selection(by_part, patterns, values_of(con, thresholds, _MAX_GROUPS), missing)


def _relation(con: duckdb.DuckDBPyConnection, scores: Scores, rules: Rules) -> str:
    """SQL of the rows with what the rules name: of a temporary table if they take several passes, else of the parts."""
    relation = scan(scores.parts, numbered=True)
    if not any(condition.quantiles for condition in rules.conditions):
        return relation
    expressions = [*rules.conditions, *rules.per, *((rules.top.by, *rules.top.group) if rules.top else ())]
    used = {name for expression in expressions for name in expression.columns}
    fields: dict[str, list[str]] = {}
    for column, *field in paths_of(con, scores):
        if name_of(column, *field) in used:
            fields.setdefault(column, []).extend(field)
    columns = [PART, ROW]
    for column, names in fields.items():
        packed = ", ".join(f"{quote(name)} := {quote(column)}.{quote(name)}" for name in names)
        is_whole = name_of(column) in used
        columns.append(quote(column) if is_whole else f"struct_pack({packed}) AS {quote(column)}")
    con.execute(f"CREATE TEMP TABLE {_ROWS} AS SELECT {', '.join(columns)} FROM ({relation})")
    return f"SELECT * FROM {_ROWS}"


def _missing(selection: Selection) -> str:
    """What is said of conditions that no row could have met."""
    return "; ".join(
        f"{condition.text!r} finds no value in any of them: {', '.join(condition.columns)} "
        f"{'is' if len(condition.columns) == 1 else 'or one of these is'} missing (null)"
        for condition in selection.without_values
    )


def count_by_rule(options: FilterOptions, patterns: Mapping[int, int]) -> list[dict[str, Any]]:
    """For each rule: the rows that fail it, that fail it alone, that fail it first (`removed`), and that are left."""
    names = [*options.where]
    if options.top_k is not None:
        names.append(f"the best {options.top_k} of each {', '.join(options.group)} by {options.by}")
    left = sum(patterns.values())
    counts = []
    for i, name in enumerate(names):
        failed = {pattern: rows for pattern, rows in patterns.items() if pattern >> i & 1}
        first = sum(rows for pattern, rows in failed.items() if not pattern & ((1 << i) - 1))
        left -= first
        counts.append(
            {
                "rule": name,
                "failed": sum(failed.values()),
                "alone": failed.get(1 << i, 0),
                "removed": first,
                "left": left,
            }
        )
    return counts


def _markdown(rules: Sequence[Mapping[str, Any]]) -> str:
    head = ["rule", "rows that fail it", "rows that fail only it", "removed", "left"]
    return markdown_table(head, [list(rule.values()) for rule in rules])
