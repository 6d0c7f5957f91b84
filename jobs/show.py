"""Print how well an output agrees with its labels, and the pairs mined from it with the largest margins.

python -m jobs.show OUT PAIRS
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
    SELECT replace(chosen_id, 'llmbar-', '') AS id, round(margin, 4) AS margin,
           round(margins.helpsteer_helpfulness, 3) AS helpfulness,
           chosen[1].content[:22] AS chosen, rejected[1].content[:22] AS rejected
    FROM pairs ORDER BY pairs.margin DESC, chosen_id LIMIT 5
"""


def main(output: str, pairs: str) -> None:
    duckdb.sql(
        f"CREATE VIEW scores AS SELECT * FROM read_parquet('{output}/scores/**/*.parquet', hive_partitioning = true)"
    )
    duckdb.sql(f"CREATE VIEW pairs AS SELECT * FROM read_parquet('{pairs}/data/train/*.parquet')")
    for query in (AGREEMENT, PAIRS):
        print(duckdb.sql(query))
    print(f"scores: {output}/scores    rejects: {output}/rejects    manifest: {output}/_SUCCESS")
    print(f"pairs: {pairs}/data    dataset card: {pairs}/README.md")


if __name__ == "__main__":
    main(*sys.argv[1:])
