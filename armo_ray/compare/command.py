"""`armo-ray compare`: how two outputs over the same rows differ in ranks, in the order of pairs, and row by row."""

import logging
from typing import Any

import duckdb

from armo_ray.compare.options import CompareOptions
from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import quote
from armo_ray.formatting.numbers import bare_percent, significant
from armo_ray.formatting.tables import text_table
from armo_ray.measures.comparison import compare
from armo_ray.outputs.database import database
from armo_ray.outputs.dataset import new_output
from armo_ray.outputs.scores import Scores, open_scores, scan
from armo_ray.outputs.text import find_sources, read_text
from armo_ray.storage.json_files import to_json

logger = logging.getLogger(__name__)

REPORT = "comparison.json"
_KEY = "source, source_row, candidate"
_TEXT_CHARS = 300  # printed of a message


def run(options: CompareOptions) -> None:
    """Print how the second output differs from the first, and write it to --output if given. Raises ConfigError."""
    first, second = (open_scores([uri], options.partition) for uri in options.scores)
    if options.output is None:
        print(_text(_compare(options, first, second)))
        return
    with new_output(options.output, "compare") as store:
        comparison = _compare(options, first, second)
        print(_text(comparison))
        store.write(REPORT, to_json(comparison))


def _compare(options: CompareOptions, first: Scores, second: Scores) -> dict[str, Any]:
    names = [name for name in first.reward_names if name in second.reward_names]
    with database(options) as con:
        _join(con, first, second, names)
        counts = [_count(con, f"({scan(scores.parts)})") for scores in (first, second)]
        both = _count(con, "joined")
        if not both:
            raise ConfigError(
                f"{first.outputs[0]} and {second.outputs[0]} have no rows in common. Rows are matched by source, "
                f"source_row and candidate; the first has {_example_source(con, 'old')}, for example, and the second "
                f"{_example_source(con, 'new')}. armo-ray report --against compares two nights"
            )
        columns = {}
        for name in ("score", *names):
            old, new = quote(f"old {name}"), quote(f"new {name}")
            con.execute(
                f"CREATE OR REPLACE TEMP VIEW compared AS SELECT place, prompt, {old} AS old, {new} AS new FROM joined"
            )
            columns[name] = compare(con, "compared")
        movers = _movers(con, options.movers)
    return {
        "scores": [first.outputs[0], second.outputs[0]],
        "models": [first.metadata, second.metadata],
        "candidates": both,
        "only_in_first": counts[0] - both,
        "only_in_second": counts[1] - both,
        "columns": columns,
        "movers": _with_text(movers, first),
    }


def _count(con: duckdb.DuckDBPyConnection, relation: str) -> int:
    return int(con.execute(f"SELECT count(*) FROM {relation}").fetchall()[0][0])


def _example_source(con: duckdb.DuckDBPyConnection, relation: str) -> str:
    return str(con.execute(f"SELECT min(source) FROM {relation}").fetchall()[0][0])


def _join(con: duckdb.DuckDBPyConnection, first: Scores, second: Scores, names: list[str]) -> None:
    """Create the table `joined`: one row per candidate that both outputs scored. Prompt ids are those of the first."""
    for label, scores in (("old", first), ("new", second)):
        values = [f"score AS {quote(f'{label} score')}"]
        values += [f"rewards.{quote(name)} AS {quote(f'{label} {name}')}" for name in names]
        con.execute(
            f"CREATE TEMP VIEW {label} AS SELECT {_KEY}, prompt_id, {', '.join(values)} FROM ({scan(scores.parts)})"
        )
    con.execute(
        f"""CREATE TEMP TABLE joined AS
            SELECT row_number() OVER () AS place, old.prompt_id AS prompt, old.* EXCLUDE (prompt_id),
                new.* EXCLUDE ({_KEY}, prompt_id)
            FROM old JOIN new USING ({_KEY})"""
    )


def _movers(con: duckdb.DuckDBPyConnection, count: int) -> list[dict[str, Any]]:
    """The candidates whose rank among all moved most; ranks go from 0, the lowest score, to 1."""
    rows = con.execute(
        f"""SELECT {_KEY}, "old score", "new score", old_rank, new_rank FROM (
                SELECT *, percent_rank() OVER (ORDER BY "old score") AS old_rank,
                    percent_rank() OVER (ORDER BY "new score") AS new_rank FROM joined)
            WHERE old_rank <> new_rank
            ORDER BY abs(new_rank - old_rank) DESC, {_KEY} LIMIT {count}"""
    ).fetchall()
    keys = (*_KEY.split(", "), "old_score", "new_score", "old_rank", "new_rank")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def _with_text(movers: list[dict[str, Any]], scores: Scores) -> list[dict[str, Any]]:
    """The movers with `prompt` and `response` from the shards; None if a shard is gone or changed."""
    try:
        sources = find_sources(scores) if movers else {}
    except ConfigError as error:
        logger.warning("the text of candidates is not shown: %s", error)
        return [{**mover, "prompt": None, "response": None} for mover in movers]
    texts = {}
    for uri in {mover["source"] for mover in movers} & sources.keys():
        for read in read_text(sources[uri], {m["source_row"] for m in movers if m["source"] == uri}):
            for row in read.to_pylist():
                texts[uri, row["source_row"], row["candidate"]] = (row["prompt"], row["response"])
    with_text = []
    for mover in movers:
        key = (mover["source"], mover["source_row"], mover["candidate"])
        prompt, response = texts.get(key, (None, None))
        with_text.append({**mover, "prompt": prompt, "response": response})
    return with_text


def _text(comparison: dict[str, Any]) -> str:
    head = [
        "second against first",
        "rank correlation",
        "flipped pairs, %",
        "different best, %",
        "largest difference",
    ]
    rows = [
        [
            name,
            significant(row["spearman"]),
            bare_percent(row["pair_flips"]),
            bare_percent(row["top_changes"]),
            significant(row["largest_difference"]),
        ]
        for name, row in comparison["columns"].items()
    ]
    score = comparison["columns"]["score"]
    counts = (
        f"{comparison['candidates']} candidates in both, {comparison['only_in_first']} only in the first, "
        f"{comparison['only_in_second']} only in the second; "
        f"{score['pairs']} pairs within prompts, {score['prompts']} prompts"
    )
    return "\n\n".join([text_table(head, rows), counts, *map(_mover, comparison["movers"])])


def _mover(mover: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"{mover['source']} row {mover['source_row']} candidate {mover['candidate']}: score "
            f"{significant(mover['old_score'])} -> {significant(mover['new_score'])}, rank "
            f"{bare_percent(mover['old_rank'])} -> {bare_percent(mover['new_rank'])} %",
            f"  prompt: {_short(mover['prompt'])}",
            f"  response: {_short(mover['response'])}",
        ]
    )


def _short(messages: list[dict[str, str]] | None) -> str:
    if not messages:
        return "(its shard is gone or has changed)"
    text = " ".join(messages[-1]["content"].split())
    return text if len(text) <= _TEXT_CHARS else f"{text[:_TEXT_CHARS]} ..."
