"""The rows that a filter keeps of a part are those of the part, bit by bit, whatever reads them."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from armo_ray.curate import kept_rows
from armo_ray.curate.kept_rows import _read_all
from armo_ray.outputs.options import ScoresOptions
from armo_ray.storage.parts import parquet, read_part, write_table
from armo_ray.storage.records import PartEntry
from armo_ray.storage.store import Store

pytest_plugins = ["tests.support.s3_server"]

OPTIONS = ScoresOptions.model_validate({"scores": ["scores"]})
ROWS = 5_000  # several batches
MESSAGE = pa.struct({"role": pa.string(), "content": pa.string()})
VALUES: dict[pa.DataType, list[Any]] = {
    pa.string(): ["", "a", "é\x00", "\ud7ff😀", None],
    pa.bool_(): [True, False, None],
    pa.int8(): [-128, 127, None],
    pa.int64(): [-(2**63), 2**63 - 1, None],
    pa.uint64(): [0, 2**64 - 1, None],
    pa.float32(): [-0.0, float("nan"), float("inf"), 1e-45, None],
    pa.float64(): [-0.0, float("nan"), 5e-324, 0.1, None],
    pa.list_(pa.string()): [[], ["", None], None],
    pa.list_(MESSAGE): [[{"role": "user", "content": None}], [None], [], None],
    pa.struct({"a b": pa.float32(), "list": pa.list_(pa.int32())}): [
        {"a b": None, "list": None},
        {"a b": 1, "list": [1]},
        None,
    ],
}
OTHERS: dict[pa.DataType, list[Any]] = {
    pa.timestamp("ns", "Europe/Berlin"): [datetime(2026, 1, 1, tzinfo=UTC), None],
    pa.decimal128(38, 9): [Decimal("1.5"), None],
    pa.map_(pa.string(), pa.int64()): [[("a", 1)], [], None],
    pa.binary(): [b"\xff", None],
    pa.large_string(): ["a", None],
    pa.float16(): [np.float16(1.5), None],
    pa.list_(pa.float32(), 2): [[1, 2], None],
    pa.null(): [None],
    pa.struct({"a": pa.int64(), "A": pa.int64()}): [{"a": 1, "A": 2}, None],
    pa.dictionary(pa.int8(), pa.string()): ["a", None],
}


def table_of(values: Mapping[pa.DataType, list[Any]], first: int = 0) -> pa.Table:
    """A column of each type, with its values in turn."""
    columns = {}
    for number, (kind, some) in enumerate(values.items()):
        taken = [some[(first + i) % len(some)] for i in range(ROWS)]
        columns[f"column {number}"] = pa.array(taken, kind)
    return pa.table(columns).replace_schema_metadata({"armo_ray": "{}"})


def check(store: Store, tables: list[pa.Table], is_exact: bool, options: ScoresOptions = OPTIONS) -> None:
    parts = [write_table(store, f"scores/part-{i:032x}.parquet", table) for i, table in enumerate(tables)]
    keep = [np.random.default_rng(i).random(ROWS) < 0.5 for i in range(len(tables))]
    keep[0][:3_000] = False
    packed = {
        f"{store.uri}/{part.path}": np.packbits(k).tobytes() for part, k in zip(parts, keep, strict=True)
    }
    assert (kept_rows._exact_schema(store, parts) is not None) == is_exact
    found = kept_rows.kept_rows(store, parts, packed, options)
    for part, k, rows in zip(parts, keep, found, strict=True):
        expected = read_part(store, part).filter(pa.array(k))
        assert rows.schema.equals(expected.schema, check_metadata=True)
        assert parquet(rows.combine_chunks()) == parquet(expected.combine_chunks())


@pytest.mark.parametrize("folder", ["plain", "it's [a] *"])
def test_values_of_common_types_are_the_same(folder: str, tmp_path: Any) -> None:
    tables = [table_of(VALUES), table_of(VALUES, 1)]
    check(Store(str(tmp_path / folder)), tables, is_exact=folder == "plain")


@pytest.mark.parametrize("kind", OTHERS, ids=str)
def test_values_of_other_types_are_the_same(kind: pa.DataType, tmp_path: Any) -> None:
    check(Store(str(tmp_path)), [table_of({pa.string(): ["a"], kind: OTHERS[kind]})], is_exact=False)


def test_columns_may_differ_between_parts(tmp_path: Any) -> None:
    tables = [table_of(VALUES), table_of({pa.string(): ["a"]}), table_of({pa.string(): [None]})]
    check(Store(str(tmp_path / "types")), tables, is_exact=False)
    other = tables[1].replace_schema_metadata({"armo_ray": '{"model": "another"}'})
    check(Store(str(tmp_path / "metadata")), [tables[1], other], is_exact=False)


def test_too_little_memory_for_duckdb_changes_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[Exception] = []

    def read_all(*given: Any) -> Iterator[pa.Table]:
        try:
            yield from _read_all(*given)
        except RuntimeError as error:
            failed.append(error)
            raise

    monkeypatch.setattr(kept_rows, "_read_all", read_all)
    tables = [table_of(VALUES), table_of(VALUES, 1)]
    check(Store(str(tmp_path)), tables, True, OPTIONS.model_copy(update={"memory": "1MB"}))
    assert "--memory 1MB is not enough" in str(failed)


def test_large_rows_are_read_too(tmp_path: Any) -> None:
    table = pa.table({"text": [str(i) * 200_000 for i in range(100)]})
    store = Store(str(tmp_path))
    part = write_table(store, "scores/part-0.parquet", table)
    packed = {f"{store.uri}/{part.path}": np.packbits(np.ones(100, bool)).tobytes()}
    assert kept_rows._exact_schema(store, [part]) is None
    (rows,) = kept_rows.kept_rows(store, [part], packed, OPTIONS)
    assert rows.equals(table)


def test_parts_on_s3_are_read_too(s3: str) -> None:
    check(Store(f"{s3}/kept"), [table_of({pa.string(): ["a", None]})], is_exact=False)


def test_a_part_that_was_not_committed_is_refused(tmp_path: Any) -> None:
    store = Store(str(tmp_path))
    part = write_table(store, "scores/part-0.parquet", table_of({pa.string(): ["a", None]}))
    packed = {f"{store.uri}/{part.path}": np.packbits(np.ones(ROWS, bool)).tobytes()}
    wrong = PartEntry(part.path, part.rows, part.bytes, "0" * 32)
    with pytest.raises(RuntimeError, match="its bytes are not those that were committed"):
        list(kept_rows.kept_rows(store, [wrong], packed, OPTIONS))
