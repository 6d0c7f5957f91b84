"""Write rollout shards of short random responses, to try a run at any size. The same seed gives the same shards.

python -m jobs.measure.synthetic DIR --candidates 400000 [--shards 8] [--jsonl]
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ANSWERS = 4  # per prompt
ROW_GROUP = 512
TEXT = (
    "the of and to in is was for with as be at by not are but from or have which one all there their been has "
    "when who will more if out so said what about time than into could state only new some year take come know"
)
WORDS = np.array(TEXT.split())


def write_shards(
    directory: Path, candidates: int, shards: int = 8, jsonl: bool = False, seed: int = 0
) -> None:
    """Write shards of rows with `id`, `prompt` and four `responses` of 4 to 39 words."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = candidates // ANSWERS
    for shard in range(shards):
        start, stop = rows * shard // shards, rows * (shard + 1) // shards
        table = _table(start, stop, np.random.default_rng([seed, shard]))
        name = f"rollouts-{shard:05d}-of-{shards:05d}"
        if jsonl:
            lines = [json.dumps(row) + "\n" for row in table.to_pylist()]
            (directory / f"{name}.jsonl").write_text("".join(lines), "utf-8")
        else:
            pq.write_table(table, directory / f"{name}.parquet", row_group_size=ROW_GROUP)


def _table(start: int, stop: int, rng: np.random.Generator) -> pa.Table:
    rows = stop - start

    def texts(count: int, low: int, high: int) -> list[str]:
        return [" ".join(WORDS[rng.integers(0, len(WORDS), size)]) for size in rng.integers(low, high, count)]

    answers = pa.array(texts(rows * ANSWERS, 4, 40))
    offsets = pa.array(np.arange(0, rows * ANSWERS + 1, ANSWERS, dtype=np.int32))
    return pa.table(
        {
            "id": pa.array(np.arange(start, stop)),
            "prompt": texts(rows, 6, 30),
            "responses": pa.ListArray.from_arrays(offsets, answers),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--candidates", type=int, default=50_000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--jsonl", action="store_true")
    args = parser.parse_args()
    write_shards(args.directory, args.candidates, args.shards, args.jsonl)


if __name__ == "__main__":
    main()
