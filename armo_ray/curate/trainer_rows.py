"""Step that joins pairs with their text into the rows that trainers read, split by prompt."""

from collections.abc import Sequence
from typing import Any

import duckdb

from armo_ray.curate.candidates import CurationJob, in_bucket, scan_scratch
from armo_ray.curate.options import MineOptions
from armo_ray.expressions.expressions import quote
from armo_ray.outputs.database import database
from armo_ray.outputs.dataset import write_part
from armo_ray.storage.records import PartEntry
from armo_ray.storage.store import Store

SPLITS = ("train", "test")


def assemble_bucket(
    job: CurationJob, texts: Sequence[str], removed: frozenset[str], bucket: int
) -> tuple[list[PartEntry], dict[str, int]]:
    """Write the pairs of a bucket, ordered by prompt and pair; returns the parts and counts.

    Args:
        texts: names of the scratch files of text.
        removed: ids of prompts whose pairs are left out.
    """
    options = job.options
    with database(options) as con:
        con.execute("CREATE TEMP TABLE removed (prompt_id VARCHAR)")
        con.execute("INSERT INTO removed SELECT unnest($1)", [sorted(removed)])
        con.execute(
            f"CREATE TEMP TABLE text AS FROM {scan_scratch(job, iter(texts))} WHERE {in_bucket(job, bucket)}"
        )
        con.execute(f"CREATE TEMP TABLE pairs AS {_with_text(job, bucket)}")
        if options.layout != "trl":
            con.execute(f"CREATE TEMP TABLE listed AS {_LISTED}")
        counts = _counts(con, job, bucket)
        parts = []
        for split in SPLITS if options.test_fraction else SPLITS[:1]:
            rows = con.sql(f"{_rows(job)} WHERE split = '{split}' ORDER BY prompt_id, pair").to_arrow_table()
            rows = rows.drop_columns(["pair"])
            counts[f"pairs in {split}"] = rows.num_rows
            if rows.num_rows or bucket == 0:  # an empty split still gets a part, for its columns
                parts.append(
                    write_part(Store(options.output), split, job.part_name(bucket), rows, options.format)
                )
    return parts, counts


def split_of(options: Any, prompt_id: str) -> str:
    """SQL expression of a prompt's split, train or test, by a hash of its id."""
    test = round(options.test_fraction * 16**8)
    hashed = f"('0x' || md5('{options.seed}/' || {prompt_id})[:8])::BIGINT"
    return f"CASE WHEN {hashed} < {test} THEN 'test' ELSE 'train' END"


def _with_text(job: CurationJob, bucket: int) -> str:
    """SQL of the pairs with text, without pairs whose texts are equal or repeat, as where a prompt was scored twice."""
    return (
        f"SELECT p.*, c.prompt AS prompt, c.response AS c_response, r.response AS r_response, "
        f"{split_of(job.options, 'p.prompt_id')} AS split "
        f"FROM {scan_scratch(job, iter([f'pairs-{bucket:05d}']))} p "
        f"JOIN text c ON c.row_id = p.chosen.row_id JOIN text r ON r.row_id = p.rejected.row_id "
        f"WHERE p.prompt_id NOT IN (FROM removed) AND c.response <> r.response "
        f"QUALIFY row_number() OVER (PARTITION BY p.prompt_id, c_response, r_response ORDER BY pair) = 1"
    )


def _counts(con: duckdb.DuckDBPyConnection, job: CurationJob, bucket: int) -> dict[str, int]:
    (mined, removed), *_ = con.execute(
        f"SELECT count(*), count(*) FILTER (prompt_id IN (FROM removed)) "
        f"FROM {scan_scratch(job, iter([f'pairs-{bucket:05d}']))}"
    ).fetchall()
    (written,) = con.execute("SELECT count(*) FROM pairs").fetchall()[0]
    return {"pairs of removed prompts": removed, "pairs of the same texts": mined - removed - written}


def _rows(job: CurationJob) -> str:
    columns = _TRL if job.options.layout == "trl" else _ULTRAFEEDBACK
    margins = ", ".join(
        f"{quote(name)}: chosen.rewards.{quote(name)} - rejected.rewards.{quote(name)}"
        for name in job.scores.reward_names
    )
    source = "pairs" if job.options.layout == "trl" else "pairs JOIN listed USING (prompt_id)"
    return f"SELECT pair, {columns.format(margins=margins, kept=_kept(job.options))} FROM {source}"


def _kept(options: MineOptions) -> str:
    return "".join(
        f", {side}.kept.{quote(name)} AS {quote(f'{side}_{name}')}"
        for name in options.keep
        for side in ("chosen", "rejected")
    )


# `prompt`, `chosen` and `rejected` are TRL's conversational preference format with an explicit prompt
_TRL = """
    prompt, c_response AS chosen, r_response AS rejected,
    chosen.score AS score_chosen, rejected.score AS score_rejected, margin,
    chosen.rewards AS rewards_chosen, rejected.rewards AS rewards_rejected, {{{margins}}} AS margins,
    chosen.num_response_tokens AS num_tokens_chosen, rejected.num_response_tokens AS num_tokens_rejected,
    prompt_id, chosen.row_id AS row_id_chosen, rejected.row_id AS row_id_rejected {kept}
"""
# the columns of princeton-nlp/llama3-ultrafeedback-armorm, where chosen and rejected are whole conversations
_ULTRAFEEDBACK = """
    prompt_id, prompt[-1].content AS prompt, all_generated_responses,
    list_transform(candidates, lambda x: x.score::DOUBLE) AS all_rm_scores,
    list_concat(prompt, c_response) AS chosen, list_concat(prompt, r_response) AS rejected {kept}
"""
_LISTED = """
    SELECT c.prompt_id, list(t.response[1].content ORDER BY place) AS all_generated_responses
    FROM (SELECT prompt_id, unnest(candidates).row_id AS row_id, generate_subscripts(candidates, 1) AS place
          FROM (SELECT DISTINCT ON (prompt_id) prompt_id, candidates FROM pairs)) c
    JOIN text t ON t.row_id = c.row_id GROUP BY c.prompt_id
"""
