"""Small shards of rows, and what is read from them: the way from files to candidates without a model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray.score.survey import check, survey
from armo_ray.storage.readers import BadRow, Row, read_units
from armo_ray.storage.shards import find_shards
from armo_ray.storage.units import cut
from armo_ray.text.conversations import Candidate, candidates_of
from armo_ray.text.detect import detect
from armo_ray.text.layouts import Layout

KINDS = ("parquet", "jsonl")
Rows = Sequence[dict[str, Any]]


def write_shard(folder: Path, kind: str, rows: Rows, name: str = "a") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def layout_of(folder: Path, layout: str = "auto", step_end: str | None = None, **options: Any) -> Layout:
    """The layout of all shards below a folder. Raises ConfigError where a run would be refused."""
    seen = survey(find_shards([str(folder)]))
    found = detect(
        seen.found,
        layout,
        options.get("column"),
        options.get("winner"),
        options.get("ignore", ()),
        step_end,
    )
    check(seen, found)
    return found


def read_shards(folder: Path, layout: Layout) -> list[Candidate]:
    """The candidates of all shards below a folder, in their order."""

    def count(row: Row) -> int:
        return 1 if isinstance(row, BadRow) else layout.count(row)

    found: list[Candidate] = []
    for span in cut(find_shards([str(folder)]), "", 2048, layout.candidate_columns):
        for unit in read_units(span, layout.sources, count, 2048, ""):
            for _, row in unit.rows:
                assert not isinstance(row, BadRow), row
                found += candidates_of(row, layout)
    return found


def conversation(candidate: Candidate) -> str:
    """A candidate as a person would write it down."""
    assert candidate.reason is None, (candidate.reason, candidate.detail)
    said = [f"{turn['role']}: {turn['content']}" for turn in candidate.prompt]
    flags = f" ({', '.join(candidate.flags)})" if candidate.flags else ""
    return "\n".join([*said, f"{candidate.role}{flags}: {candidate.response}"])
