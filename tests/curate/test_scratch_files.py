"""Arrow files between tasks: every row is in the range of its prompt, once, wherever the files lie."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from armo_ray.curate import scratch_files
from armo_ray.curate.job import _range
from armo_ray.curate.scratch_files import NOTHING, read_column, read_sorted, together, write_sorted
from armo_ray.outputs.schema import TEXT_FIELDS

pytest_plugins = ["tests.support.s3_server"]

KEPT = pa.struct([("deep", pa.struct([("number", pa.int64())])), ("list", pa.list_(pa.int64()))])
SCHEMA = pa.schema(
    [("prompt_id", pa.string()), ("source", pa.string()), ("id", pa.int64()), ("kept", KEPT), *TEXT_FIELDS]
)
ROWS = 6_000  # in each file several batches


@pytest.fixture(params=["disk", "s3"])
def scratch(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "[scratch]")
    return f"{request.getfixturevalue('s3')}/scratch-{tmp_path.name}"


def prompt_id(number: int) -> str:
    """Of every third prompt the first digits are those of many others."""
    digits = hashlib.md5(str(number).encode()).hexdigest()
    return digits if number % 3 else f"{'0' * 8 if number % 2 else 'f' * 8}{digits[8:]}"


def batches() -> Iterator[pa.RecordBatch]:
    for first in range(0, ROWS, 500):
        numbers = range(first, first + 500)
        texts = [[{"role": "user", "content": "é" * (number % 50)}] for number in numbers]
        prompts, sources = [prompt_id(number // 4) for number in numbers], [f"s{n % 3}" for n in numbers]
        kept = [{"deep": {"number": number}, "list": [number]} for number in numbers]
        columns = [prompts, sources, list(numbers), kept, texts, texts]
        arrays = [pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)]
        yield pa.record_batch(arrays, schema=SCHEMA)


@pytest.mark.parametrize("ranges", [1, 40])
def test_each_range_has_the_rows_of_its_prompts(
    ranges: int, scratch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch_files, "_FILE_BYTES", 300_000)
    written = write_sorted(scratch, "some", batches(), SCHEMA)
    assert len(written.names) > 1
    assert written.rows == ROWS
    assert written.text_bytes == 2 * sum(2 * (number % 50) for number in range(ROWS))
    found: list[int] = []
    con = duckdb.connect()
    for number in range(ranges):
        within = _range(number, ranges)
        rows = read_sorted(con, scratch, written.names, within)
        assert rows.schema.equals(SCHEMA.append(pa.field("row", pa.int64())))
        assert rows["row"].to_pylist() == list(range(rows.num_rows))
        assert rows["prompt_id"].to_pylist() == [prompt_id(i // 4) for i in rows["id"].to_pylist()]
        assert all(within.low <= prompt < within.high for prompt in rows["prompt_id"].to_pylist())
        query = "SELECT id, kept.deep.number, kept.list[1], len(response[1].content) FROM rows"
        assert all(i == deep == listed and i % 50 == n for i, deep, listed, n in con.sql(query).fetchall())
        found += rows["id"].to_pylist()
    assert sorted(found) == list(range(ROWS))
    sources = read_column(scratch, written.names, "source").read_all()["source"].to_pylist()
    assert sorted(sources) == sorted(f"s{number % 3}" for number in range(ROWS))


def test_no_rows_are_a_file_without_rows(scratch: str) -> None:
    written = write_sorted(scratch, "none", iter([]), SCHEMA)
    assert (len(written.names), written.rows, written.text_bytes) == (1, 0, 0)
    assert read_sorted(duckdb.connect(), scratch, written.names, _range(0, 1)).num_rows == 0
    assert together([NOTHING, written]) == written


def test_columns_of_different_types_get_a_type_that_fits_all(tmp_path: Path) -> None:
    names: list[str] = []
    columns: list[list[Any]] = [[1, 2], [1.5, None], ["a", "b"]]
    for number, kept in enumerate(columns):
        table = pa.table({"prompt_id": ["00000000a", "f0000000b"], "kept": [{"x": value} for value in kept]})
        names += write_sorted(str(tmp_path), f"{number}", table.to_batches(), table.schema).names
    con = duckdb.connect()
    rows = [read_sorted(con, str(tmp_path), names, _range(number, 2)) for number in range(2)]
    found = [sorted(str(value["x"]) for value in table["kept"].to_pylist()) for table in rows]
    assert found == [["1", "1.5", "a"], ["2", "None", "b"]]
