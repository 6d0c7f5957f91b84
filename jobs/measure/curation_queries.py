"""Plain DuckDB queries that make what the curation commands make, for `jobs.measure.curation` to compare with.

Each takes SQL of the scores and the folder to write to. Filtered and reweighed scores go to files of as many rows as
those of the commands: 32 MiB in memory, which is about 32,768 rows with text. All are compressed at level 1, as by the
commands. The numbers that reweigh and report show are computed too.
"""

import numpy as np

from jobs.measure.synthetic_scores import ANSWERS, NAMES

_KEY = "source, source_row, candidate"
_WHOLE = "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
_PARTS = (
    "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE 32768, ROW_GROUPS_PER_FILE 1)"
)


def mine(scores: str, out: str) -> str:
    """The best candidate of each prompt, and the one nearest to the mean less two deviations."""
    margins = ", ".join(f"{name}: c.rewards.{name} - r.rewards.{name}" for name in NAMES)
    return f"""COPY (
        WITH moments AS (
            SELECT prompt_id, max(score) AS top, avg(score) - 2 * stddev_pop(score) AS target
            FROM {scores} GROUP BY prompt_id
        ), sides AS (
            SELECT prompt_id, arg_max(s.row_id, s.score) AS best,
                arg_min(s.row_id, abs(s.score - target)) FILTER (s.score < top) AS other
            FROM {scores} s JOIN moments USING (prompt_id) GROUP BY prompt_id
        )
        SELECT c.prompt, c.response AS chosen, r.response AS rejected, c.score AS score_chosen,
            r.score AS score_rejected, c.score::DOUBLE - r.score AS margin, c.rewards AS rewards_chosen,
            r.rewards AS rewards_rejected, {{{margins}}} AS margins, c.num_response_tokens AS num_tokens_chosen,
            r.num_response_tokens AS num_tokens_rejected, c.prompt_id, best AS row_id_chosen, other AS row_id_rejected
        FROM sides JOIN {scores} c ON c.row_id = best JOIN {scores} r ON r.row_id = other ORDER BY c.prompt_id
    ) TO '{out}/rows.parquet' {_WHOLE}"""


def label(scores: str, out: str, text: bool) -> str:
    """A row per candidate, with softmax, advantage and rank in its prompt."""
    columns = f"prompt_id, row_id, {_KEY}, role, score, rewards AS labels"
    return f"""COPY (
        SELECT {"prompt, response, " if text else ""}{columns}, (weight / sum(weight) OVER p)::FLOAT AS probability,
            coalesce((score - mean) / nullif(deviation, 0), 0)::FLOAT AS advantage,
            (row_number() OVER (PARTITION BY prompt_id ORDER BY score DESC, {_KEY}))::INTEGER AS rank
        FROM (SELECT *, exp(score::DOUBLE - max(score) OVER p) AS weight, avg(score::DOUBLE) OVER p AS mean,
                  stddev_samp(score::DOUBLE) OVER p AS deviation
              FROM {scores} WINDOW p AS (PARTITION BY prompt_id))
        WINDOW p AS (PARTITION BY prompt_id) ORDER BY prompt_id, {_KEY}
    ) TO '{out}/rows.parquet' {_WHOLE}"""


def filtered(scores: str, out: str) -> str:
    """The better half."""
    return f"""COPY (
        SELECT * FROM {scores} WHERE score >= (SELECT quantile_disc(score, 0.5) FROM {scores})
    ) TO '{out}/rows' {_PARTS}"""


def reweigh(scores: str, out: str, transform: list[list[float]]) -> str:
    """Scores without one reward, and how they rank compared with the old ones."""
    rows = [row for name, row in zip(NAMES, transform, strict=True) if name != "helpsteer_verbosity"]
    rewards = [f"rewards.{name}" for name in NAMES if name != "helpsteer_verbosity"]
    new = " + ".join(f"{reward} * ({_weight(row)})" for reward, row in zip(rewards, rows, strict=True))
    return f"""
        COPY (SELECT * REPLACE (({new})::FLOAT AS score) FROM {scores}) TO '{out}/rows' {_PARTS};
        CREATE TEMP TABLE made AS SELECT a.prompt_id, row_id, a.score AS old, b.score AS new
        FROM {scores} a JOIN read_parquet('{out}/rows/*.parquet') b USING (row_id);
        SELECT corr(a, b) FROM (SELECT rank() OVER (ORDER BY old) AS a, rank() OVER (ORDER BY new) AS b FROM made);
        SELECT count(*) FILTER (sign(a.old - b.old) * sign(a.new - b.new) < 0)
        FROM made a JOIN made b ON a.prompt_id = b.prompt_id AND a.row_id < b.row_id;
        SELECT count(*) FILTER (a <> b) FROM (
            SELECT arg_max(row_id, old) AS a, arg_max(row_id, new) AS b FROM made GROUP BY prompt_id)"""


def report(scores: str, transform: list[list[float]]) -> str:
    """Distributions and correlations of all columns, the terms of the score, and the spread within prompts."""
    values = ["score", "num_prompt_tokens", "num_response_tokens", *(f"rewards.{name}" for name in NAMES)]
    gates = [f"gating.{name}" for name in NAMES]
    terms = [f"rewards.{name} * ({_weight(row)})" for name, row in zip(NAMES, transform, strict=True)]
    ends = np.linspace(-1, 2, 240).round(4).tolist()
    selects = [f"histogram({v}::DOUBLE, {ends}), min({v}), max({v}), avg({v})" for v in [*values, *gates]]
    selects += [f"covar_pop({a}, {b})" for i, a in enumerate(values) for b in values[: i + 1]]
    selects += [
        f"avg(abs(t{i})), avg(t{i}), covar_pop(t{i}, score), var_pop(t{i})" for i in range(len(terms))
    ]
    made = ", ".join(f"{term} AS t{i}" for i, term in enumerate(terms))
    return f"""
        SELECT {", ".join(selects)} FROM (SELECT *, {made} FROM {scores});
        SELECT count(*), avg(s[-1] - s[1]), avg(deviation) FROM (
            SELECT list_sort(list(score)) AS s, stddev_pop(score) AS deviation FROM {scores} GROUP BY prompt_id);
        SELECT * FROM {scores} ORDER BY score DESC LIMIT {ANSWERS};
        SELECT * FROM {scores} ORDER BY score LIMIT {ANSWERS}"""


def _weight(row: list[float]) -> str:
    return " + ".join(f"{weight!r}::DOUBLE * gating.{name}" for name, weight in zip(NAMES, row, strict=True))
