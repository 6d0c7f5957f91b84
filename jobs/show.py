"""Print what an output holds: how often the model agrees with the labels, and the pairs it is surest of.

python -m jobs.show OUT
"""

import sys

import duckdb

AGREEMENT = """
    SELECT subset, count(*) AS pairs,
           round(avg((c.score > r.score)::int), 3) AS agreement,
           round(avg(c.score - r.score), 4) AS mean_margin
    FROM scores c JOIN scores r USING (source, source_row, subset)
    WHERE c.role = 'chosen' AND r.role = 'rejected' GROUP BY subset ORDER BY subset
"""
PAIRS = """
    SELECT replace(c.id, 'llmbar-', '') AS id, round(c.score - r.score, 4) AS margin,
           round(c.rewards.helpsteer_helpfulness - r.rewards.helpsteer_helpfulness, 3) AS helpfulness,
           c.response[1].content[:22] AS chosen, r.response[1].content[:22] AS rejected
    FROM scores c JOIN scores r USING (source, source_row)
    WHERE c.role = 'chosen' AND r.role = 'rejected' ORDER BY margin DESC, c.id LIMIT 5
"""


def main(output: str) -> None:
    duckdb.sql(
        f"CREATE VIEW scores AS SELECT * FROM read_parquet('{output}/scores/**/*.parquet', hive_partitioning = true)"
    )
    for query in (AGREEMENT, PAIRS):
        print(duckdb.sql(query))
    print(f"scores: {output}/scores    rejects: {output}/rejects    manifest: {output}/_SUCCESS")


if __name__ == "__main__":
    main(*sys.argv[1:])
