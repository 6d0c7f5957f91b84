"""Benchmarks that are published as one JSON array, as the JSON lines that armo-ray score reads.

python -m jobs.benchmark_rows RM-Bench/total_dataset.json --output rm-bench.jsonl
python -m jobs.benchmark_rows LLMBar/Natural/dataset.json LLMBar/Adversarial/*/dataset.json --output llmbar.jsonl
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.storage.filesystem import read_text


def rows_of(file: str) -> Iterator[dict[str, Any]]:
    """The rows of one file; those of LLMBar with their answers by label and the folder's name as subset."""
    try:
        rows = json.loads(read_text(file))
    except ValueError as error:
        raise ConfigError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{file}: expected a JSON array of objects")
    for i, row in enumerate(rows):
        yield _llmbar(row, file, i) if "output_1" in row else row


def _llmbar(row: dict[str, Any], file: str, i: int) -> dict[str, Any]:
    if row.get("label") not in (1, 2) or "output_2" not in row or "input" not in row:
        raise ConfigError(f"{file} row {i}: expected input, output_1, output_2 and a label of 1 or 2")
    folders = [name.lower() for name in file.split("/")[-3:-1]]
    subset = "-".join(folders if folders[0] == "adversarial" else folders[-1:])
    chosen, rejected = (row[f"output_{n}"] for n in (row["label"], 3 - row["label"]))
    return {"subset": subset, "prompt": row["input"], "chosen": chosen, "rejected": rejected}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE.json", help="local, or a URI such as hf://datasets/..."
    )
    parser.add_argument("--output", required=True, metavar="FILE.jsonl")
    args = parser.parse_args(argv)
    try:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for file in args.files for row in rows_of(file)]
        Path(args.output).write_text("".join(lines), "utf-8")
    except (ConfigError, OSError) as error:
        print(f"benchmark_rows: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
