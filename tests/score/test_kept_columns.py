"""Kept columns have the type that all shards share, and no row is rejected because of them."""

import datetime as dt
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.score.kept_columns import Seen, unify
from armo_ray.verify.output import verify_output
from tests.support.local import rejects_of, rows_of, score_locally

UTC = dt.UTC
ROW = {"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "Mud."}


def write_parquet(path: Path, column: pa.Array, name: str = "x") -> None:
    rows = {part: [text] * len(column) for part, text in ROW.items()}
    pq.write_table(pa.table({**rows, name: column}), path)


def write_jsonl(path: Path, values: list[Any], name: str = "x") -> None:
    text = "".join(json.dumps(ROW | {name: value}) + "\n" for value in values).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def kept_of(output: Path, name: str = "x") -> list[Any]:
    """The kept value of every row, which the chosen answer and the rejected one both have, with its type."""
    rows = rows_of(output)
    assert [row[name] for row in rows[::2]] == [row[name] for row in rows[1::2]]
    return [row[name] for row in rows[::2]]


def flags_of(output: Path) -> list[list[str]]:
    return [row["flags"] for row in rows_of(output)[::2]]


STRUCT, WIDER = pa.struct([("a", pa.int32())]), pa.struct([("a", pa.int64()), ("b", pa.string())])
SHARED: dict[str, tuple[list[pa.DataType], pa.DataType]] = {
    "null-then-string": ([pa.null(), pa.string()], pa.string()),
    "string-then-null": ([pa.string(), pa.null()], pa.string()),
    "int32-then-int64": ([pa.int32(), pa.int64()], pa.int64()),
    "int16-then-uint16": ([pa.int16(), pa.uint16()], pa.int32()),
    "uint64-then-int8": ([pa.uint64(), pa.int8()], pa.decimal128(20, 0)),
    "int8-then-half": ([pa.int8(), pa.float16()], pa.float16()),
    "int32-then-float": ([pa.int32(), pa.float32()], pa.float64()),
    "int64-then-double": ([pa.int64(), pa.float64()], pa.float64()),
    "float-then-double": ([pa.float32(), pa.float64()], pa.float64()),
    "all-numbers": ([pa.uint64(), pa.int64(), pa.float32()], pa.float64()),
    "decimals": ([pa.decimal128(10, 2), pa.decimal128(9, 4)], pa.decimal128(12, 4)),
    "decimal-then-int": ([pa.decimal128(5, 2), pa.int32()], pa.decimal128(12, 2)),
    "timestamps-of-units": ([pa.timestamp("ms"), pa.timestamp("ns")], pa.timestamp("ns")),
    "timestamps-of-zones": (
        [pa.timestamp("us", "Asia/Tokyo"), pa.timestamp("ms", "UTC")],
        pa.timestamp("us", "UTC"),
    ),
    "durations": ([pa.duration("s"), pa.duration("us")], pa.duration("us")),
    "times": ([pa.time32("ms"), pa.time64("us")], pa.time64("us")),
    "structs": ([STRUCT, WIDER], WIDER),
    "struct-of-null": ([pa.struct([("a", pa.null())]), WIDER], WIDER),
    "list-of-null": ([pa.list_(pa.null()), pa.list_(pa.string())], pa.list_(pa.string())),
    "list-then-large": ([pa.list_(pa.int8()), pa.large_list(pa.int64())], pa.large_list(pa.int64())),
    "lists-of-sizes": ([pa.list_(pa.float32(), 2), pa.list_(pa.float32(), 3)], pa.list_(pa.float32())),
    "lists-of-structs": ([pa.list_(STRUCT), pa.list_(WIDER)], pa.list_(WIDER)),
    "maps": ([pa.map_(pa.string(), pa.null()), pa.map_(pa.string(), pa.int8())], pa.map_("string", "int8")),
    "dictionary-then-string": ([pa.dictionary(pa.int8(), pa.string()), pa.string()], pa.string()),
    "string-then-large": ([pa.string(), pa.large_string()], pa.large_string()),
    "one-type-as-it-is": (
        [pa.dictionary(pa.int32(), pa.string())] * 2,
        pa.dictionary(pa.int32(), pa.string()),
    ),
    "binaries": ([pa.binary(4), pa.binary()], pa.binary()),
}


def seen(types: list[pa.DataType]) -> list[Seen]:
    return [Seen(f"{i}.parquet", ["x"], pa.schema([("x", kind)])) for i, kind in enumerate(types)]


@pytest.mark.parametrize(("types", "expected"), SHARED.values(), ids=SHARED.keys())
def test_types_are_widened_whichever_comes_first(types: list[pa.DataType], expected: pa.DataType) -> None:
    for order in (types, types[::-1]):
        found = unify({"x": "x"}, (), seen(order)).field("x").type
        if pa.types.is_struct(expected):
            assert set(found) == set(expected)
        else:
            assert found == expected


@pytest.mark.parametrize(
    "types",
    [
        [pa.string(), pa.int64()],
        [pa.bool_(), pa.int8()],
        [pa.timestamp("us"), pa.timestamp("us", "UTC")],
        [pa.list_(pa.string()), pa.string()],
        [STRUCT, pa.struct([("a", pa.string())])],
        [pa.date32(), pa.timestamp("s")],
        [pa.decimal256(76, 0), pa.decimal128(5, 4)],
        [pa.binary(), pa.string()],
    ],
    ids=str,
)
def test_what_no_type_holds_is_refused_with_column_types_and_shards(types: list[pa.DataType]) -> None:
    with pytest.raises(ConfigError, match=r"column x: .* in 0\.parquet; .* in 1\.parquet.*--keep-json x"):
        unify({"x": "x"}, (), seen(types))


VALUES: dict[str, tuple[pa.Array, pa.Array]] = {
    "null-then-string": (pa.nulls(2), pa.array(["a", None])),
    "int-then-nan": (pa.array([1, 2]), pa.array([0.5, None])),
    "int32-then-int64": (pa.array([1], pa.int32()), pa.array([2**40])),
    "uint64-then-int64": (pa.array([2**64 - 1], pa.uint64()), pa.array([-1])),
    "float-then-double": (pa.array([0.5], pa.float32()), pa.array([0.1])),
    "timestamps": (
        pa.array([dt.datetime(2026, 1, 2, 3, 4, 5, 678)], pa.timestamp("us")),
        pa.array([1_767_323_045_000_000_001], pa.timestamp("ns")),
    ),
    "zones": (
        pa.array([dt.datetime(2026, 1, 2, tzinfo=UTC)], pa.timestamp("us", "Asia/Tokyo")),
        pa.array([dt.datetime(2026, 1, 3, tzinfo=UTC)], pa.timestamp("us", "Europe/Paris")),
    ),
    "new-field": (pa.array([{"a": 1}]), pa.array([{"a": None, "b": "c"}])),
    "empty-lists": (pa.array([[]], pa.list_(pa.null())), pa.array([["a"], None])),
    "decimals": (pa.array([Decimal("1.10")]), pa.array([Decimal("12345.6789")])),
    "dictionary": (pa.array(["a"]).dictionary_encode(), pa.array(["b"], pa.large_string())),
}


@pytest.mark.parametrize(("first", "second"), VALUES.values(), ids=VALUES.keys())
def test_every_value_of_shards_of_two_types_is_kept(
    first: pa.Array, second: pa.Array, tiny_model: Path, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "a.parquet", first)
    write_parquet(tmp_path / "b.parquet", second)
    score_locally(tiny_model, tmp_path, tmp_path / "out", keep=["x"])
    assert rejects_of(tmp_path / "out") == []
    assert [flags for flags in flags_of(tmp_path / "out") if flags] == []
    for found, value in zip(
        kept_of(tmp_path / "out"), [*first.to_pylist(), *second.to_pylist()], strict=True
    ):
        if isinstance(value, dict):
            found = {name: entry for name, entry in found.items() if name in value}
        assert found == value


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ([None, None], ["a"], [None, None, "a"]),
        ([1], [0.5], [1.0, 0.5]),
        ([2**63], [-1], [Decimal(2**63), Decimal(-1)]),
        ([{"a": 1}], [{"b": [None]}, {"b": ["c"]}], None),
        ([[]], [["a"]], [[], ["a"]]),
        ([True], [None], [True, None]),
    ],
    ids=["null", "float", "unsigned", "fields", "lists", "bool"],
)
def test_the_type_of_json_values_is_that_of_all_rows_that_are_looked_at(
    first: list[Any], second: list[Any], kept: list[Any] | None, suffix: str, tiny_model: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / f"a.{suffix}", first)
    write_jsonl(tmp_path / f"b.{suffix}", second)
    score_locally(tiny_model, tmp_path, tmp_path / "out", keep=["x"])
    expected = kept or [{"a": 1, "b": None}, {"a": None, "b": [None]}, {"a": None, "b": ["c"]}]
    assert kept_of(tmp_path / "out") == expected
    assert flags_of(tmp_path / "out") == [[]] * len(expected)


def test_parquet_and_json_lines_share_a_type(tiny_model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [1, 2.5])
    write_parquet(tmp_path / "b.parquet", pa.array([7], pa.int16()))
    score_locally(tiny_model, tmp_path, tmp_path / "out", keep=["x"])
    assert kept_of(tmp_path / "out") == [1.0, 2.5, 7.0]


def test_a_later_value_that_does_not_fit_becomes_null_with_a_flag(tiny_model: Path, tmp_path: Path) -> None:
    later = [0.5, 2**70, "a \ud83d", {"a": 1}, True, [1]]
    write_jsonl(tmp_path / "a.jsonl", [*range(1000), *later, 7])
    score_locally(tiny_model, tmp_path, tmp_path / "out", keep={"n": "x"})
    assert rejects_of(tmp_path / "out") == []
    assert kept_of(tmp_path / "out", "n") == [*range(1000), *[None] * 6, 7]
    assert flags_of(tmp_path / "out") == [[]] * 1000 + [["kept_value_lost:n"]] * 6 + [[]]
    assert verify_output(str(tmp_path / "out"))[1] == []


def test_a_later_value_that_fits_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    columns: dict[str, tuple[Any, Any]] = {
        "missing_field": ({"a": 1, "b": 2}, {"a": 1}),
        "whole_number": (1.5, 2),
        "nan": (1.5, float("nan")),
        "null_in_list": (["x"], ["x", None]),
    }
    first, later = ({name: pair[i] for name, pair in columns.items()} for i in range(2))
    rows = [ROW | first] * 1000 + [ROW | later]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score_locally(tiny_model, tmp_path, tmp_path / "out", keep=list(columns))
    last = rows_of(tmp_path / "out")[-1]
    assert [name for name in columns if last[name] is None] == last["flags"] == []


def test_an_integer_that_a_double_would_round_is_flagged_in_parquet_too(
    tiny_model: Path, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "a.parquet", pa.array([2**53 + 1, 3]))
    write_parquet(tmp_path / "b.parquet", pa.array([0.5]))
    score_locally(tiny_model, tmp_path, tmp_path / "out", keep=["x"])
    assert kept_of(tmp_path / "out") == [None, 3.0, 0.5]
    assert flags_of(tmp_path / "out") == [["kept_value_lost:x"], [], []]


ODD = [2**127 - 1, "nick \ud83d", None, [1, "a"], {}]


def test_values_of_any_types_are_kept_as_json_text(tiny_model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ODD)
    write_parquet(tmp_path / "b.parquet", pa.array([b"ab\xff", None]))
    score_locally(tiny_model, tmp_path, tmp_path / "out", keep_json=["x"])
    found = kept_of(tmp_path / "out")
    assert [None if text is None else json.loads(text) for text in found] == [*ODD, "ab\\xff", None]
    assert flags_of(tmp_path / "out") == [[]] * 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([2**127 - 1], r"column x of .*a\.jsonl holds 170141183460469231731687303715884105727, an integer"),
        ([1, "a"], r"no type holds all values of column x: int64 in .*a\.jsonl; string in .*a\.jsonl"),
        ([[1, "a"]], r"column x of .*a\.jsonl holds a list of int64 and string"),
        ([{}], r"column x is struct<>, which Parquet cannot hold"),
        ([None], r"column x is null in the first 1 rows"),
    ],
    ids=["huge", "mixed", "mixed-list", "empty-object", "null"],
)
def test_what_cannot_be_kept_is_refused_before_the_run(
    values: list[Any], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "a.jsonl", values)
    with pytest.raises(ConfigError, match=f"{message}.*--keep-json x"):
        score_locally(tiny_model, tmp_path / "a.jsonl", tmp_path / "out", keep=["x"])
    assert not (tmp_path / "out").exists()


def test_a_lone_surrogate_alone_is_null_and_flagged(tiny_model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["nick \ud83d", "ok"])
    score_locally(tiny_model, tmp_path / "a.jsonl", tmp_path / "out", keep=["x"], partition_by=["x"])
    assert [row["flags"] for row in rows_of(tmp_path / "out")][::2] == [["kept_value_lost:x"], []]


def test_tensors_and_extension_types_are_kept_or_refused(tiny_model: Path, tmp_path: Path) -> None:
    import numpy as np

    flags = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0], pa.int8()))
    rows = {part: [text] * 2 for part, text in ROW.items()}
    columns = {
        "uid": pa.array([b"0" * 16, b"1" * 16], pa.uuid()),
        "flat": pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(6.0).reshape(2, 3)),
        "deep": pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(8.0).reshape(2, 2, 2)),
        "flag": flags,
    }
    pq.write_table(pa.table({**rows, **columns}), tmp_path / "a.parquet")
    keep = ["uid", "flat", "flag"]
    score_locally(tiny_model, tmp_path / "a.parquet", tmp_path / "out", keep=keep)
    assert kept_of(tmp_path / "out", "uid") == columns["uid"].to_pylist()
    assert kept_of(tmp_path / "out", "flat") == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert kept_of(tmp_path / "out", "flag") == [True, False]
    with pytest.raises(ConfigError, match=r"column deep of .* holds values of .*tensor.*--keep-json deep"):
        score_locally(tiny_model, tmp_path / "a.parquet", tmp_path / "out2", keep=["deep"])


def test_a_column_that_some_shards_lack_is_null_there(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_parquet(tmp_path / "a.parquet", pa.array(["b"]), "y")
    write_parquet(tmp_path / "b.parquet", pa.array(["c"]))
    write_jsonl(tmp_path / "c.jsonl", ["d"], "y")
    score_locally(tiny_model, tmp_path, tmp_path / "out", keep=["x"])
    assert kept_of(tmp_path / "out") == [None, "c", None]
    assert (
        f"kept column x is null for the 2 shards that lack it, the first is {tmp_path / 'a.parquet'}"
        in caplog.text
    )


def test_a_shard_that_is_added_cannot_widen_the_types_of_the_first_run(
    tiny_model: Path, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "a.parquet", pa.array([1, 2]))
    score_locally(tiny_model, tmp_path, tmp_path / "out", keep=["x"])
    write_parquet(tmp_path / "b.parquet", pa.array([3], pa.int8()))
    score_locally(tiny_model, tmp_path, tmp_path / "out", keep=["x"])
    assert kept_of(tmp_path / "out") == [1, 2, 3]
    write_parquet(tmp_path / "c.parquet", pa.array([0.5]))
    with pytest.raises(ConfigError, match=r"column x is double in .*c\.parquet, but int64 in the output"):
        score_locally(tiny_model, tmp_path, tmp_path / "out", keep=["x"])


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_every_command_reads_times_with_zones_and_other_kept_types(
    suffix: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing needs a package that is not installed with us, as DuckDB needs pytz for times with zones."""
    times = [dt.datetime(2026, 1, day, 12, tzinfo=UTC) for day in (1, 2, 3)]
    columns: dict[str, pa.Array] = {
        "at": pa.array(times, pa.timestamp("us", "Asia/Tokyo")),
        "ats": pa.array([[time] for time in times], pa.list_(pa.timestamp("ns", "UTC"))),
        "st": pa.array([{"at": time} for time in times], pa.struct([("at", pa.timestamp("ms", "UTC"))])),
        "wide": pa.array([2**64 - 1, 0, None], pa.decimal128(20, 0)),
        "uid": pa.array([bytes([i]) * 16 for i in range(3)], pa.uuid()),
        "took": pa.array([1, 2, None], pa.duration("ns")),
        "void": pa.nulls(3),
    }
    rows = {"prompt": ["a", "a", "b"], "responses": [["c", "dd"], ["e e", "f"], ["g", "h h"]]}
    pq.write_table(pa.table({**rows, **columns}), tmp_path / "a.parquet")
    out = tmp_path / "out"
    score_locally(tiny_model, tmp_path / "a.parquet", out, keep=list(columns), keep_text=suffix == "parquet")
    assert rejects_of(out) == []
    kind = ["--format", suffix]
    for i, command in enumerate(
        [
            ["report", "OUT"],
            ["filter", "OUT", "--where", "score >= q0.1 and at >= '2026-01-02'", "--per", "at", "ats", *kind],
            ["filter", "OUT", "--where", "wide > 1", "--top-k", "1", "--group", "at", *kind],
            ["label", "OUT", "--scale", "standardized", "--per", "at", "--keep", *columns, *kind],
            ["mine", "OUT", "--strategy", "best-worst", "--keep", *columns, *kind],
            ["compare", "OUT", "OUT"],
            ["explain", "OUT", "highest"],
        ]
    ):
        given = [str(out) if word == "OUT" else word for word in command]
        given += ["--output", str(tmp_path / f"o{i}")] if command[0] in ("filter", "label", "mine") else []
        assert main(given) == 0, capsys.readouterr().err
