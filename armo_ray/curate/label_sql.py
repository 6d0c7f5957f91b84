"""The labels of some prompts, in SQL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import pyarrow as pa

from armo_ray.curate import candidate_text
from armo_ray.curate.candidate_text import Selected, with_text
from armo_ray.curate.candidates import KEY, check_once, load_candidates
from armo_ray.curate.job import CurationJob
from armo_ray.curate.options import LabelOptions
from armo_ray.curate.scratch_files import read_sorted, scan_parquet, write_parquet
from armo_ray.curate.trainer_rows import SPLIT, split_of, write_splits
from armo_ray.expressions.expressions import quote
from armo_ray.outputs.database import database
from armo_ray.storage.records import PartEntry

# names that --keep cannot use: columns that each shape writes itself
OUTPUT = {
    "candidates": {
        *("prompt", "response", "prompt_id", "row_id", *KEY.split(", "), "role", "score"),
        *("labels", "probability", "advantage", "rank"),
    },
    "sft": {"prompt", "completion", "prompt_id", "row_id", "score", "rank", "num_candidates"},
}


@dataclass(frozen=True)
class Calibration:
    """What all buckets share: the formula of every label, the moments of every group, and the temperature."""

    labels: Mapping[str, str]  # SQL by name, over the columns of a candidate and `moments`
    moments: Sequence[Mapping[str, Any]]
    temperature: float


# what labels are made of; other columns of a candidate are read when its row is written
_READ = {
    "candidates": f"prompt_id, id, {KEY}, score, can_be",
    "pairs": f"prompt_id, id, {KEY}, score, can_be, role, row_id",
    "sft": f"prompt_id, id, {KEY}, score, can_be, row_id",
}


def reading_of(job: CurationJob) -> CurationJob:
    """The job that reads what labels need: as every candidate has a row, all its columns at once for these."""
    options: LabelOptions = job.options
    if options.shape == "candidates":
        return replace(job, text_at_once=options.text and job.scores.has_text)
    return replace(job, skipped=("rewards",))


def reads_text_apart(job: CurationJob) -> bool:
    """Whether the text of the labelled rows is read in a step of its own, between labelling and writing."""
    return bool(job.options.text) and not job.text_at_once


def label_bucket(job: CurationJob, calibration: Calibration, bucket: int) -> tuple[dict[str, int], int]:
    """Write the labelled rows of a bucket without text, and the candidates whose text they need.

    Returns counts, and the number of rows.
    """
    with database(job.options) as con:
        candidates = read_sorted(con, job.scratch, job.candidates.names, job.bucket(bucket))
        counts = _make_labels(con, job, calibration, candidates)
        labels = con.sql("FROM labels ORDER BY place").to_arrow_table()
        write_parquet(job.scratch, f"labels-{bucket:05d}", labels)
        write_parquet(job.scratch, f"text-needed-{bucket:05d}", con.sql(_text_needed(job)).to_arrow_table())
    return counts, labels.num_rows


def finish_piece(
    job: CurationJob, calibration: Calibration, piece: int
) -> tuple[dict[str, int], list[PartEntry]]:
    """Label and write the rows of a piece that need no other text; returns counts and the parts."""
    with database(job.options) as con:
        candidates = read_sorted(con, job.scratch, job.candidates.names, job.piece(piece))
        counts = _make_labels(con, job, calibration, candidates)
        con.execute("DROP TABLE candidates; DROP TABLE ranked")
        texts = candidates if job.text_at_once else None
        table = _rows(con, job, calibration, "labels", candidates, texts)
    return counts, write_splits(job, piece, table)


def _make_labels(
    con: duckdb.DuckDBPyConnection, job: CurationJob, calibration: Calibration, candidates: pa.Table
) -> dict[str, int]:
    """Create the table `labels`: the labelled rows of some prompts, with `place` their order; returns counts."""
    options: LabelOptions = job.options
    kept = ", kept" if options.shape == "sft" and options.keep else ""
    load_candidates(con, candidates, _READ[options.shape] + kept)
    check_once(con)
    con.execute(f"CREATE TEMP TABLE ranked AS {_ranked(options, calibration)}")
    rows = {"candidates": _CANDIDATES, "pairs": _pairs(calibration), "sft": _best(options)}
    con.execute(f"CREATE TEMP TABLE labels AS {rows[options.shape]}")
    query = (
        "SELECT count(*) AS candidates, count(DISTINCT prompt) AS prompts, "
        'count(*) FILTER (NOT passes) AS "candidates that do not pass" FROM ranked'
    )
    counts = con.execute(query).fetchall()[0]
    return dict(zip(("candidates", "prompts", "candidates that do not pass"), counts, strict=True))


def _ranked(options: LabelOptions, calibration: Calibration) -> str:
    """Candidates with probability and advantage among all of their prompt, and rank among those that pass --where.

    The advantage is that of GRPO (arXiv 2402.03300): the score minus the prompt's mean, divided by the prompt's sample
    standard deviation as in TRL; 0 if all scores are equal.
    """
    temperature = repr(calibration.temperature)
    # lists in a fixed order: the same sums on any number of threads, in a third of the time of windows
    return f"""
        WITH listed AS (
            SELECT prompt, list(score::DOUBLE ORDER BY i) AS scores, min(score) AS least, max(score) AS most
            FROM candidates GROUP BY prompt
        ), prompts AS (
            SELECT prompt, len(scores) AS num_candidates, most, list_avg(scores) AS mean,
                CASE WHEN least < most THEN list_aggregate(scores, 'stddev_samp') END AS deviation,
                list_sum(list_transform(scores, lambda x: exp((x - most) / {temperature}::DOUBLE))) AS total
            FROM listed
        )
        SELECT candidates.*, num_candidates, num_candidates >= {options.min_candidates} AND can_be AS passes,
            (exp((score::DOUBLE - most) / {temperature}::DOUBLE) / total)::FLOAT AS probability,
            CASE WHEN deviation > 0 THEN ((score::DOUBLE - mean) / deviation)::FLOAT ELSE 0 END AS advantage,
            row_number() OVER (PARTITION BY prompt, can_be ORDER BY score DESC, i)::INTEGER AS rank
        FROM candidates JOIN prompts USING (prompt)"""


def _load_moments(con: duckdb.DuckDBPyConnection, calibration: Calibration) -> None:
    """Create the table `moments`: the key of every group, with mean and scale by the name of the label."""
    rows = [
        (entry["group"], list(entry["labels"]), [[m["mean"], m["scale"]] for m in entry["labels"].values()])
        for entry in calibration.moments
    ]
    con.execute("CREATE TEMP TABLE moments (key VARCHAR[], moments MAP(VARCHAR, DOUBLE[]))")
    for row in rows:
        con.execute("INSERT INTO moments SELECT $1, map($2::VARCHAR[], $3::DOUBLE[][])", list(row))


_CANDIDATES = "SELECT prompt_id, id, i AS place, probability, advantage, rank FROM ranked WHERE passes"


def _pairs(calibration: Calibration) -> str:
    """Pairs of chosen and rejected as the source has them; for responses, every pair, with the better as chosen."""
    return f"""
        SELECT c.prompt_id, row_number() OVER (ORDER BY c.i, r.i) AS place,
            (1 / (1 + exp((r.score::DOUBLE - c.score::DOUBLE) / {calibration.temperature!r}::DOUBLE)))::FLOAT
                AS probability,
            c.score - r.score AS margin, c.score AS score_chosen, r.score AS score_rejected,
            c.row_id AS row_id, r.row_id AS row_id_rejected, c.id AS id, r.id AS id_rejected
        FROM ranked c JOIN ranked r ON c.prompt_id = r.prompt_id AND c.passes AND r.passes AND CASE
            WHEN c.role = 'response' AND r.role = 'response' THEN c.score > r.score
            ELSE c.role = 'chosen' AND r.role = 'rejected' AND c.source = r.source AND c.source_row = r.source_row
            END"""


def _best(options: LabelOptions) -> str:
    kept = ", kept" if options.keep else ""
    return (
        f"SELECT prompt_id, row_id, id, i AS place, score, rank, num_candidates{kept} FROM ranked "
        f"WHERE passes AND rank <= {options.best}"
    )


def _text_needed(job: CurationJob) -> str:
    rejected = " UNION SELECT id_rejected FROM labels" if job.options.shape == "pairs" else ""
    return candidate_text.select_needed(job, f"id IN (SELECT id FROM labels{rejected})")


def write_piece(job: CurationJob, calibration: Calibration, files: Selected, piece: int) -> list[PartEntry]:
    """Write the rows of a piece with their text, ordered by prompt and candidate; returns the parts."""
    within = job.piece(piece)
    labels = f"(FROM {scan_parquet(job.scratch, [f'labels-{piece // job.pieces:05d}'])} WHERE {within.sql})"
    with database(job.options) as con:
        texts = read_sorted(con, job.scratch, files.texts.names, within)
        candidates = None
        if job.options.shape == "candidates":
            candidates = read_sorted(con, job.scratch, job.candidates.names, within)
        table = _rows(con, job, calibration, labels, candidates, texts)
    return write_splits(job, piece, table)


def _rows(
    con: duckdb.DuckDBPyConnection,
    job: CurationJob,
    calibration: Calibration,
    labels: str,
    candidates: pa.Table | None,
    texts: pa.Table | None,
) -> pa.Table:
    """The rows of some prompts in order, with their split and, if it is given, their text.

    `labels` is the SQL relation of what `_make_labels` made. `candidates` are needed for rows of candidates.
    """
    options: LabelOptions = job.options
    columns, joins = [f"{split_of(options, 'l.prompt_id')} AS {SPLIT}"], list[str]()
    if texts is not None:
        con.register("texts", texts)
        columns.append("t.row AS __text")
        joins.append("JOIN (SELECT id, row FROM texts) t ON t.id = l.id")
    if texts is not None and options.shape == "pairs":
        columns.append("r.row AS __rejected")
        joins.append("JOIN (SELECT id, row FROM texts) r ON r.id = l.id_rejected")
    if options.shape == "candidates":
        _load_moments(con, calibration)
        con.register("read_candidates", candidates)
        formulas = ", ".join(f"{quote(name)}: ({sql})::FLOAT" for name, sql in calibration.labels.items())
        columns += ["c.row AS __row", f"{{{formulas}}} AS labels", "probability", "advantage", "rank"]
        joins.append("JOIN read_candidates c ON c.id = l.id")
        joins += ["JOIN moments ON moments.key IS NOT DISTINCT FROM c.key"] if calibration.moments else []
    else:
        hidden = ["place", "id", *(["kept"] if options.keep else [])]
        hidden += ["id_rejected"] if options.shape == "pairs" else []
        named = "RENAME (row_id AS row_id_chosen)" if options.shape == "pairs" else ""
        columns.append(f"l.* EXCLUDE ({', '.join(hidden)}) {named}")
        columns += [f"l.kept.{quote(name)} AS {quote(name)}" for name in dict.fromkeys(options.keep)]
    rows = con.sql(
        f"SELECT {', '.join(columns)} FROM {labels} l {' '.join(joins)} ORDER BY l.place"
    ).to_arrow_table()
    if options.shape == "candidates":
        rows = _with_candidates(rows, candidates, options)
    return rows if texts is None else with_text(rows, texts, _TEXT[options.shape])


def _with_candidates(rows: pa.Table, candidates: pa.Table, options: LabelOptions) -> pa.Table:
    """Labels with the other columns of their candidates, whose places are in the column `__row`."""
    names = ["prompt_id", "row_id", *KEY.split(", "), "role", "score"]
    taken = candidates.select([*names, *(["kept"] if options.keep else [])]).take(rows["__row"])
    columns = {name: taken[name] for name in names}
    columns |= {name: rows[name] for name in rows.column_names if name != "__row"}
    if options.keep:
        kept = taken["kept"].combine_chunks()
        columns |= {name: kept.field(name) for name in dict.fromkeys(options.keep)}
    return pa.table(columns)


# the columns that TRL reads, a preference with an explicit prompt, or a prompt and its completion: of each the column
# of texts, and the column with its places there
_TEXT = {
    "candidates": {"prompt": ("prompt", "__text"), "response": ("response", "__text")},
    "pairs": {
        "prompt": ("prompt", "__text"),
        "chosen": ("response", "__text"),
        "rejected": ("response", "__rejected"),
    },
    "sft": {"prompt": ("prompt", "__text"), "completion": ("response", "__text")},
}
