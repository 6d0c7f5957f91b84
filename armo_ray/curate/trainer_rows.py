"""Step that joins pairs with their text into the rows that trainers read, split by prompt."""

from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from armo_ray.curate.candidate_text import Selected, with_text
from armo_ray.curate.job import CurationJob
from armo_ray.curate.options import MineOptions
from armo_ray.curate.scratch_files import read_sorted, scan_parquet
from armo_ray.expressions.expressions import quote
from armo_ray.outputs.database import database
from armo_ray.outputs.dataset import write_part
from armo_ray.storage.records import PartEntry
from armo_ray.storage.store import Store

SPLITS = ("train", "test")
SPLIT = "__split"  # column of the name of a row's split, until it is written


def assemble_piece(
    job: CurationJob, files: Selected, removed: frozenset[str], piece: int
) -> tuple[list[PartEntry], dict[str, int]]:
    """Write the pairs of a piece, ordered by prompt and pair; returns the parts and counts.

    Args:
        files: scratch files of the candidates of pairs.
        removed: ids of prompts whose pairs are left out.
    """
    options = job.options
    with database(options) as con:
        con.execute("CREATE TEMP TABLE removed (prompt_id VARCHAR)")
        con.execute("INSERT INTO removed SELECT unnest($1)", [sorted(removed)])
        texts = read_sorted(con, job.scratch, files.texts.names, job.piece(piece))
        con.register("texts", texts)
        if files.late:
            con.register("late", read_sorted(con, job.scratch, files.late.names, job.piece(piece)))
        con.execute(f"CREATE TEMP TABLE sides AS {_sides(job, files)}")
        rows = con.sql(f"{_rows(job, piece)} ORDER BY prompt_id, pair").to_arrow_table()
        counts = _counts(con, job, piece, rows.num_rows)
    rows = with_text(rows, texts, _TRL_TEXT) if options.layout == "trl" else rows
    parts = write_splits(job, piece, rows.drop_columns(["pair"]))
    rows_in = dict.fromkeys(splits_of(options), 0) | {part.path.split("/")[1]: part.rows for part in parts}
    return parts, counts | {f"pairs in {split}": count for split, count in rows_in.items()}


def splits_of(options: Any) -> Sequence[str]:
    """The names of the splits of a dataset."""
    return SPLITS if options.test_fraction else SPLITS[:1]


def write_splits(job: CurationJob, piece: int, rows: pa.Table) -> list[PartEntry]:
    """Write the rows of a piece as a part of each split, which their column SPLIT names."""
    options, parts = job.options, []
    store, splits = Store(options.output), splits_of(options)
    for split in splits:
        table = rows.filter(pc.equal(rows[SPLIT], split)) if len(splits) > 1 else rows
        table = table.drop_columns([SPLIT])
        if table.num_rows or piece == 0:  # an empty split still gets a part, for its columns
            parts.append(write_part(store, split, job.part_name(piece), table, options.format))
    return parts


def split_of(options: Any, prompt_id: str) -> str:
    """SQL expression of a prompt's split, train or test, by a hash of its id."""
    if not options.test_fraction:
        return "'train'"
    test = round(options.test_fraction * 16**8)
    hashed = f"('0x' || md5('{options.seed}/' || {prompt_id})[:8])::BIGINT"
    return f"CASE WHEN {hashed} < {test} THEN 'test' ELSE 'train' END"


def _sides(job: CurationJob, files: Selected) -> str:
    """SQL of the candidates of pairs; `same` is equal where a prompt's responses are."""
    same = "SELECT unnest(list(id)) AS id, min(id) AS same FROM texts GROUP BY prompt_id, response"
    text = "EXCLUDE (prompt, response)" if job.options.layout == "trl" else ""
    late = "JOIN (SELECT * EXCLUDE (prompt_id, row) FROM late) USING (id)" if files.late else ""
    return f"SELECT * FROM (SELECT * {text} FROM texts) JOIN ({same}) USING (id) {late}"


def _mined(job: CurationJob, piece: int) -> str:
    """SQL relation of the mined pairs of a piece."""
    pairs = scan_parquet(job.scratch, [f"pairs-{piece // job.pieces:05d}"])
    return f"(FROM {pairs} WHERE {job.piece(piece).sql})"


def _pairs(job: CurationJob, piece: int) -> str:
    """SQL of the pairs, without those whose responses are equal or repeat, as where a prompt was scored twice."""
    alone = job.options.strategy.startswith("best-")  # the only pair of its prompt
    repeats = "row_number() OVER (PARTITION BY p.prompt_id, c.same, r.same ORDER BY pair) = 1"
    return (
        f"SELECT p.*, c, r, {split_of(job.options, 'p.prompt_id')} AS {SPLIT} "
        f"FROM {_mined(job, piece)} p "
        f"JOIN sides c ON c.id = p.c_id JOIN sides r ON r.id = p.r_id "
        f"WHERE p.prompt_id NOT IN (FROM removed) AND c.same <> r.same "
        f"{'' if alone else f'QUALIFY {repeats}'}"
    )


def _counts(con: duckdb.DuckDBPyConnection, job: CurationJob, piece: int, written: int) -> dict[str, int]:
    (mined, removed), *_ = con.execute(
        f"SELECT count(*), count(*) FILTER (prompt_id IN (FROM removed)) FROM {_mined(job, piece)}"
    ).fetchall()
    return {"pairs of removed prompts": removed, "pairs of the same texts": mined - removed - written}


def _rows(job: CurationJob, piece: int) -> str:
    columns = _TRL if job.options.layout == "trl" else _ULTRAFEEDBACK
    margins = ", ".join(
        f"{quote(name)}: c.rewards.{quote(name)} - r.rewards.{quote(name)}"
        for name in job.scores.reward_names
    )
    columns = columns.format(margins=margins, kept=_kept(job.options))
    if job.options.layout == "trl":
        return f"SELECT pair, {SPLIT}, {columns} FROM ({_pairs(job, piece)})"
    return (
        f"WITH pairs AS ({_pairs(job, piece)}), listed AS ({_LISTED}) "
        f"SELECT pair, {SPLIT}, {columns} FROM pairs JOIN listed USING (prompt_id)"
    )


def _kept(options: MineOptions) -> str:
    return "".join(
        f", {side[0]}.kept.{quote(name)} AS {quote(f'{side}_{name}')}"
        for name in options.keep
        for side in ("chosen", "rejected")
    )


# TRL's conversational preference format with an explicit prompt
_TRL_TEXT = {
    "prompt": ("prompt", "c_row"),
    "chosen": ("response", "c_row"),
    "rejected": ("response", "r_row"),
}
_TRL = """
    c.row AS c_row, r.row AS r_row, c.score AS score_chosen, r.score AS score_rejected, margin,
    c.rewards AS rewards_chosen, r.rewards AS rewards_rejected, {{{margins}}} AS margins,
    c.num_response_tokens AS num_tokens_chosen, r.num_response_tokens AS num_tokens_rejected,
    prompt_id, c.row_id AS row_id_chosen, r.row_id AS row_id_rejected {kept}
"""
# the columns of princeton-nlp/llama3-ultrafeedback-armorm, where chosen and rejected are whole conversations
_ULTRAFEEDBACK = """
    prompt_id, c.prompt[-1].content AS prompt, all_generated_responses,
    list_transform(candidates, lambda x: x.score::DOUBLE) AS all_rm_scores,
    list_concat(c.prompt, c.response) AS chosen, list_concat(c.prompt, r.response) AS rejected {kept}
"""
_LISTED = """
    SELECT l.prompt_id, list(t.response[1].content ORDER BY place) AS all_generated_responses
    FROM (SELECT prompt_id, unnest(candidates).id AS id, generate_subscripts(candidates, 1) AS place
          FROM (SELECT DISTINCT ON (prompt_id) prompt_id, candidates FROM pairs)) l
    JOIN sides t ON t.id = l.id GROUP BY l.prompt_id
"""
