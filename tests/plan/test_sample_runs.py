"""A plan reads the lines of a shard as a run does."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from armo_ray.plan.sample_runs import draw, read_blocks
from armo_ray.storage.readers import BadRow, Row, read_units
from armo_ray.storage.shards import find_shards
from armo_ray.storage.units import Span

BOM = b"\xef\xbb\xbf"
ROWS = [json.dumps({"i": i, "text": "Box Hill, \u00e9"}, ensure_ascii=False).encode() for i in range(7)]
PLAIN = b"\n".join(ROWS)
CONTENTS = {
    "plain": PLAIN,
    "mark": BOM + PLAIN + b"\n",
    "mark-alone": BOM + b"\n" + PLAIN,
    "mark-and-crlf": BOM + b"\r\n".join(ROWS) + b"\r\n",
    "blank-lines": b"\n \r\n" + b"\n\n\t\n".join(ROWS) + b"\n\n",
    "mark-in-the-middle": ROWS[0] + b"\n" + BOM + ROWS[1] + b"\n" + ROWS[2],
    "mark-after-a-blank-line": b"\n" + BOM + PLAIN,
    "no-json": b"x \r\n" + PLAIN + b"\n[1]\n{",
    "empty": b"",
}


def scored_and_planned(path: Path) -> tuple[list[Row], list[Row]]:
    """The rows that a run reads of a shard, and those that a plan reads of it, if it reads the whole."""
    span = Span(find_shards([str(path)])[0])
    scored = [row for unit in read_units(span, [], lambda row: 1, 2048, "") for _, row in unit.rows]
    planned = [
        row for stratum in draw([span], 8) for run in read_blocks(stratum.drawn, []) for row in run.rows
    ]
    return scored, planned


def write(folder: Path, suffix: str, content: bytes) -> Path:
    path = folder / f"x.jsonl{suffix}"
    zstd: Any = pa.compress(content, "zstd", asbytes=True) if content else b""
    path.write_bytes({"": content, ".gz": gzip.compress(content), ".zst": zstd}[suffix])
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_plan_reads_the_rows_that_a_run_reads(suffix: str, content: bytes, tmp_path: Path) -> None:
    scored, planned = scored_and_planned(write(tmp_path, suffix, content))
    assert planned == scored
    assert len(scored) >= 3 * bool(content)


def test_a_gz_shard_that_is_padded_with_zeros_is_planned_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(BOM + PLAIN[:50]) + gzip.compress(PLAIN[50:]) + bytes(10_000))
    scored, planned = scored_and_planned(path)
    assert planned == scored == [json.loads(row) for row in ROWS]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_of_a_shard_that_breaks_off_the_rows_before_are_planned(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path, suffix, b"\n".join(ROWS * 20_000))
    path.write_bytes(path.read_bytes()[:-10])
    scored, planned = scored_and_planned(path)
    assert [row.detail for row in planned if isinstance(row, BadRow)] == [scored[-1].detail]  # type: ignore[union-attr]
    assert planned == scored
