"""Every row of a shard is read once, with its number; what cannot be read says so and harms no other."""

import gzip
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armo_ray.storage.readers import BadRow, Row, UnitRows, read_rows, read_units, sample
from armo_ray.storage.shards import Shard, find_shards
from armo_ray.storage.units import UNIT_BYTES, Span, cut, unit_id

F = "fingerprint"


def thirds(compress: Callable[[bytes], bytes], content: bytes) -> bytes:
    """Three compressed members or frames, which break lines anywhere."""
    n = len(content) // 3
    return compress(content[:n]) + compress(content[n : 2 * n]) + compress(content[2 * n :])


def zstd(content: bytes) -> bytes:
    compressed: bytes = pa.compress(content, "zstd", asbytes=True)
    return compressed


KINDS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "jsonl": (".jsonl", bytes),
    "gz": (".jsonl.gz", gzip.compress),
    "gz-members": (".jsonl.gz", lambda content: thirds(gzip.compress, content)),
    "zst": (".jsonl.zst", zstd),
    "zst-frames": (".jsonl.zst", lambda content: thirds(zstd, content)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def write(directory: Path, content: bytes, kind: str = "jsonl") -> Path:
    suffix, encode = KINDS[kind]
    path = directory / f"x{suffix}"
    path.write_bytes(encode(content))
    return path


def shard_at(path: Path) -> Shard:
    (shard,) = find_shards([str(path)])
    return shard


def count(row: Row) -> int:
    """A row holds as many candidates as it says in `n`."""
    return 1 if isinstance(row, BadRow) else int(row.get("n", 1))


def read(path: Path, unit_rows: int = 100, done: frozenset[int] = frozenset()) -> list[UnitRows]:
    return list(read_units(Span(shard_at(path), done=done), [], count, unit_rows, F))


def rows_of(units: list[UnitRows]) -> list[tuple[int, Row]]:
    return [row for unit in units for row in unit.rows]


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def only_bad(units: list[UnitRows]) -> tuple[int, BadRow]:
    ((number, row),) = [(n, row) for n, row in rows_of(units) if isinstance(row, BadRow)]
    return number, row


ROW = st.fixed_dictionaries({"n": st.integers(0, 5), "text": st.text()})
LINE = st.one_of(ROW, ROW, st.sampled_from(["", "  ", "\t"]))


@every_kind
@settings(max_examples=60)
@given(
    written=st.lists(LINE, max_size=40),
    end=st.sampled_from(["\n", "\r\n"]),
    ends=st.booleans(),
    unit_rows=st.integers(1, 20),
    done=st.sets(st.integers(0, 12)),
)
def test_the_units_of_a_jsonl_shard_hold_its_rows_once_with_their_line_numbers(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    written: list[Any],
    end: str,
    ends: bool,
    unit_rows: int,
    done: set[int],
) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in written]
    content = end.join(texts) + end * (ends and bool(texts))
    path = write(tmp_path_factory.getbasetemp(), content.encode(), kind)
    units = read(path, unit_rows)
    assert rows_of(units) == [(n, line) for n, line in enumerate(written) if not isinstance(line, str)]

    shard = shard_at(path)
    assert [u.unit.id for u in units] == [unit_id(shard, F, str(n)) for n in range(len(units))]
    assert [u.unit.ordinal for u in units] == list(range(len(units)))
    assert [u.unit.last for u in units] == [False] * (len(units) - 1) + [True]
    assert sum(u.unit.source_bytes for u in units) <= shard.size
    for u in units:
        assert u.unit.num_rows == len(u.rows)
        assert all(number >= u.unit.first_row for number, _ in u.rows)
        assert sum(count(row) for _, row in u.rows[:-1]) < unit_rows
        assert u.unit.last or sum(count(row) for _, row in u.rows) >= unit_rows
    again = read(path, unit_rows, frozenset(done))
    assert [(u.unit.id, u.rows) for u in again] == [
        (u.unit.id, u.rows) for u in units if u.unit.ordinal not in done
    ]


@every_kind
@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\n"], ids=["empty", "a-line-end", "blank-lines"])
def test_a_jsonl_shard_without_rows_is_one_last_unit_without_rows(
    tmp_path: Path, kind: str, content: bytes
) -> None:
    (unit,) = read(write(tmp_path, content, kind))
    assert (unit.unit.ordinal, unit.unit.num_rows, unit.unit.last, unit.rows) == (0, 0, True, [])


def test_a_gz_shard_of_no_bytes_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl.gz").write_bytes(b"")
    (unit,) = read(tmp_path / "x.jsonl.gz")
    assert (unit.rows, unit.unit.last) == ([], True)


@every_kind
def test_lines_longer_than_a_read_keep_their_text_and_numbers(tmp_path: Path, kind: str) -> None:
    rows = [
        {"text": c * n}
        for c, n in [("a", 1), ("b", 3 << 20), ("c", (1 << 20) - 12), ("d", 1), ("é", 1 << 20)]
    ]
    units = read(write(tmp_path, lines(*rows), kind), 2)
    assert rows_of(units) == list(enumerate(rows))
    assert [len(u.rows) for u in units] == [2, 2, 1]


@pytest.mark.parametrize(
    "end", [b"\n", b"\n{}\n", b""], ids=["at-the-end", "before-another", "without-a-line-end"]
)
def test_a_line_longer_than_a_unit_is_a_bad_row_without_its_text(tmp_path: Path, end: bytes) -> None:
    content = lines({"a": 1}) + b"x" * (UNIT_BYTES + (3 << 20)) + end
    (tmp_path / "x.jsonl.zst").write_bytes(zstd(content))
    rows = rows_of(read(tmp_path / "x.jsonl.zst"))
    assert rows[0] == (0, {"a": 1})
    assert rows[1] == (1, BadRow("malformed_row", "a line of more than 64 MiB"))
    assert rows[2:] == ([(2, {})] if end == b"\n{}\n" else [])


def test_a_unit_ends_when_its_text_reaches_the_limit(tmp_path: Path) -> None:
    text = "x" * (1 << 20)
    (tmp_path / "x.jsonl.zst").write_bytes(zstd(lines(*[{"text": text}] * 70)))
    assert [len(u.rows) for u in read(tmp_path / "x.jsonl.zst", 10_000)] == [64, 6]


@every_kind
def test_invalid_json_is_one_bad_row_with_its_text(tmp_path: Path, kind: str) -> None:
    rows: list[Any] = [{"a": n} for n in range(1200)]
    text = "{'single': 'quotes é'}"
    content = lines(*rows[:999]) + text.encode() + b"\n" + lines(*rows[1000:])
    units = read(write(tmp_path, content, kind))
    number, bad = only_bad(units)
    assert (number, bad.reason, bad.raw) == (999, "malformed_row", text)
    assert "not valid JSON" in bad.detail
    assert [row for row in rows_of(units) if row[0] != 999] == [
        (n, row) for n, row in enumerate(rows) if n != 999
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        pytest.param(b"[1]", "expected a JSON object, found list", id="list"),
        pytest.param(b'"text"', "expected a JSON object, found str", id="text"),
        pytest.param(b"null", "expected a JSON object, found NoneType", id="null"),
        pytest.param(b"1e400", "expected a JSON object, found float", id="number"),
        pytest.param(b'{"a": "\xff"}', "not valid JSON", id="not-utf-8"),
        pytest.param(b'"\xed\xa0\x80"', "expected a JSON object, found str", id="text-of-a-lone-surrogate"),
        pytest.param(b"\xff\xfe5\x00", "", id="utf-16"),
        pytest.param(b'{"a": ' + b"[" * 100_000, "not valid JSON", id="deeply-nested"),
        pytest.param(b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON", id="a-number-of-5000-digits"),
        pytest.param(b"\0\0\0", "not valid JSON", id="nul-bytes"),
        pytest.param(b'{"a": 2, "b": 0, "a": 9}', 'an object has the key "a" twice', id="a-key-twice"),
        pytest.param(
            b'{"a": [{"b": 2, "b": 2}]}', 'an object has the key "b" twice', id="a-key-twice-inside"
        ),
    ],
)
def test_what_is_no_json_object_is_a_bad_row_between_its_neighbours(
    tmp_path: Path, line: bytes, told: str
) -> None:
    units = read(write(tmp_path, lines({"a": 1}) + line + b"\n" + lines({"a": 3})))
    number, bad = only_bad(units)
    assert (number, bad.reason) == (1, "malformed_row")
    assert told in bad.detail
    assert bad.raw is not None
    bad.raw.encode()  # it goes into the rejects: it must be valid text
    assert rows_of(units)[::2] == [(0, {"a": 1}), (2, {"a": 3})]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    assert rows_of(read(write(tmp_path, b"\xef\xbb\xbf" + lines({"a": 1}, {"a": 2})))) == [
        (0, {"a": 1}),
        (1, {"a": 2}),
    ]


def noise(rows: int) -> list[dict[str, Any]]:
    """Rows that compress badly, so that a cut file breaks off in the middle of them."""
    return [{"i": i, "text": os.urandom(30).hex()} for i in range(rows)]


@pytest.mark.parametrize("num_rows", [0, 200, 30_000], ids=["header", "small", "large"])
def test_a_gz_shard_that_breaks_off_keeps_the_rows_before(tmp_path: Path, num_rows: int) -> None:
    rows = noise(num_rows or 10)
    whole = gzip.compress(lines(*rows), 1)
    kept = whole[: len(whole) // 2 if num_rows else 5]
    (tmp_path / "x.jsonl.gz").write_bytes(kept)
    complete = zlib.decompressobj(31).decompress(kept).count(b"\n")
    units = read(tmp_path / "x.jsonl.gz", 64)
    number, bad = only_bad(units)
    assert bad.reason == "unreadable_shard"
    assert f"line {number + 1}" in bad.detail
    assert (number, rows_of(units)[:-1]) == (complete, list(enumerate(rows[:complete])))
    assert [u.unit.last for u in units] == [False] * (len(units) - 1) + [True]
    assert [u.unit.id for u in read(tmp_path / "x.jsonl.gz", 64)] == [u.unit.id for u in units]


@pytest.mark.parametrize(("suffix", "encode"), [(".gz", gzip.compress), (".zst", zstd)], ids=["gz", "zst"])
@pytest.mark.parametrize("what", ["truncated", "garbage"])
def test_members_before_a_broken_one_are_kept(
    tmp_path: Path, suffix: str, encode: Callable[[bytes], bytes], what: str
) -> None:
    rows = noise(100)
    second = encode(lines(*noise(100)))[:20] if what == "truncated" else b"garbage" * 10
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(encode(lines(*rows)) + second)
    units = read(path)
    number, bad = only_bad(units)
    assert (number, bad.reason) == (100, "unreadable_shard")
    assert rows_of(units)[:-1] == list(enumerate(rows))


def write_groups(path: Path, groups: list[list[dict[str, Any]]], schema: pa.Schema, **options: Any) -> Path:
    """A Parquet file with a row group for each list of rows."""
    with pq.ParquetWriter(path, schema, **options) as writer:
        for rows in groups:
            writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=max(len(rows), 1))
    return path


def read_parquet(
    path: Path, unit_rows: int, columns: list[str], keep: set[int] | None = None
) -> list[UnitRows]:
    """The units of a Parquet shard, or those with the ordinals `keep`."""
    (span,) = cut([shard_at(path)], F, unit_rows, {"r": True})
    units = tuple(unit for unit in span.units if keep is None or unit.ordinal in keep)
    return list(read_units(replace(span, units=units), columns, count, unit_rows, F))


SCHEMA = pa.schema([("i", pa.int64()), ("t", pa.string()), ("r", pa.list_(pa.string()))])


@settings(max_examples=60)
@given(
    groups=st.lists(st.lists(st.integers(0, 3), max_size=60), max_size=5),
    unit_rows=st.integers(1, 60),
    done=st.sets(st.integers(0, 12)),
)
def test_the_units_of_a_parquet_shard_hold_its_rows_once_with_their_numbers(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[int]], unit_rows: int, done: set[int]
) -> None:
    at = [0, *accumulate(map(len, groups))]
    written = [
        [{"i": start + k, "t": None if n == 3 else f"é{n}", "r": ["x"] * n} for k, n in enumerate(group)]
        for start, group in zip(at, groups, strict=False)
    ]
    path = write_groups(tmp_path_factory.getbasetemp() / "rows.parquet", written, SCHEMA)
    units = read_parquet(path, unit_rows, ["r", "i", "t"])
    assert rows_of(units) == [(row["i"], row) for group in written for row in group]
    assert [u.unit.last for u in units] == [False] * (len(units) - 1) + [True]
    for u in units:
        assert (len(u.rows), [n for n, _ in u.rows[:1]]) == (
            u.unit.num_rows,
            [u.unit.first_row][: len(u.rows)],
        )
    rest = [u for u in units if u.unit.ordinal not in done]
    assert read_parquet(path, unit_rows, ["r", "i", "t"], {u.unit.ordinal for u in rest}) == rest


def test_a_row_group_larger_than_a_batch_is_cut_where_it_was_planned(tmp_path: Path) -> None:
    rows = [{"i": i, "t": "x", "r": ["y"]} for i in range(5000)]
    path = write_groups(tmp_path / "x.parquet", [rows, rows[:7]], SCHEMA)
    units = read_parquet(path, 1500, ["i"])
    assert [u.unit.num_rows for u in units] == [1250, 1250, 1250, 1250, 7]
    assert [(n, row) for n, row in rows_of(units)[:5000]] == [(i, {"i": i}) for i in range(5000)]
    assert read_parquet(path, 1500, ["i"], {1, 3}) == [units[1], units[3]]


BIG = "lorem ipsum " * 25_000
REPEATED: dict[str, tuple[Any, Callable[[Any], str]]] = {
    "text": (BIG, lambda value: value),
    "list": (["short", BIG], lambda value: value[1]),
    "messages": ([{"role": "user", "content": BIG}], lambda value: value[0]["content"]),
    "map": (pa.scalar([("a", BIG)], pa.map_(pa.string(), pa.string())), lambda value: value[0][1]),
}


@pytest.mark.parametrize(("value", "text"), REPEATED.values(), ids=REPEATED.keys())
def test_a_text_that_a_dictionary_holds_once_weighs_in_every_row(
    value: Any, text: Callable[[Any], str], tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    texts = pa.array([value] * 600, getattr(value, "type", None))
    pq.write_table(pa.table({"p": texts, "r": [["a", "b"]] * 600}), path)
    (span,) = cut([shard_at(path)], F, 2048, {"r": True})
    sizes, rows = [], 0
    for unit in read_units(span, ["p"], lambda row: 2, 2048, F):
        texts = [text(row["p"]) for _, row in unit.rows if isinstance(row, dict)]
        sizes.append(sum(map(len, texts)))
        assert [number for number, _ in unit.rows] == list(range(rows, rows + len(unit.rows)))
        rows += len(unit.rows)
    assert rows == 600
    assert UNIT_BYTES / 2 < max(sizes) <= UNIT_BYTES
    assert sum(unit.candidates for unit in span.units) == 1200


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        pytest.param(["t"], {"t": "a"}, id="one"),
        pytest.param(["missing", "t"], {"t": "a"}, id="one-is-missing"),
        pytest.param(["missing"], {}, id="all-are-missing"),
        pytest.param([], {}, id="none-asked-for"),
    ],
)
def test_rows_have_the_columns_that_are_asked_for_and_there(
    tmp_path: Path, columns: list[str], row: dict[str, Any]
) -> None:
    rows = [{"i": i, "t": "a", "r": []} for i in range(30)]
    path = write_groups(tmp_path / "x.parquet", [rows[:20], rows[20:]], SCHEMA)
    units = read_parquet(path, 15, columns)
    assert rows_of(units) == [(n, row) for n in range(30)]
    assert [u.unit.num_rows for u in units] == [10, 10, 10]


def test_an_empty_parquet_shard_has_one_unit_without_rows(tmp_path: Path) -> None:
    (unit,) = read_parquet(write_groups(tmp_path / "x.parquet", [], SCHEMA), 10, ["i"])
    assert (unit.rows, unit.unit.last) == ([], True)


def test_a_parquet_shard_without_a_footer_is_one_bad_row(tmp_path: Path) -> None:
    path = write_groups(tmp_path / "x.parquet", [[{"i": 1, "t": "a", "r": []}]], SCHEMA)
    path.write_bytes(path.read_bytes()[:-20])
    units = read_parquet(path, 10, ["i"])
    number, bad = only_bad(units)
    assert (number, bad.reason, len(rows_of(units))) == (0, "unreadable_shard", 1)


@pytest.mark.parametrize("unit_rows", [300, 500, 1000], ids=["cut-groups", "whole-groups", "joined-groups"])
def test_a_damaged_page_costs_only_the_units_that_need_it(tmp_path: Path, unit_rows: int) -> None:
    rows = [{"i": i, "t": os.urandom(20).hex(), "r": ["x"]} for i in range(2000)]
    groups = [rows[n : n + 500] for n in range(0, 2000, 500)]
    path = write_groups(tmp_path / "x.parquet", groups, SCHEMA, use_dictionary=False)
    column = pq.read_metadata(path).row_group(2).column(1)
    middle = column.data_page_offset + column.total_compressed_size // 2
    content = bytearray(path.read_bytes())
    content[middle : middle + 300] = b"\xff" * 300
    path.write_bytes(content)

    units = read_parquet(path, unit_rows, ["i", "t"])
    assert [
        number for u in units for number in range(u.unit.first_row, u.unit.first_row + u.unit.num_rows)
    ] == list(range(2000))
    for u in units:
        first, stop = u.unit.first_row, u.unit.first_row + u.unit.num_rows
        good = [(n, {"i": n, "t": rows[n]["t"]}) for n in range(first, stop)]
        if stop <= 1000 or first >= 1500:
            assert u.rows == good
            continue
        number, bad = u.rows[-1]
        assert isinstance(bad, BadRow)
        assert u.rows[:-1] == good[: number - first]
        assert bad.reason == "unreadable_shard"
        assert f"{stop - number} rows of this unit" in bad.detail


def test_text_in_no_encoding_costs_only_its_row(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff\xfe", b"c"] * 10, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"t": texts, "i": range(30)}), tmp_path / "x.parquet")
    units = read_parquet(tmp_path / "x.parquet", 10, ["t", "i"])
    assert [u.unit.num_rows for u in units] == [10, 10, 10]
    assert [number for number, _ in rows_of(units)] == list(range(30))
    for number, row in rows_of(units):
        if number % 3 == 1:
            assert isinstance(row, BadRow)
            assert row.reason == "malformed_row"
        else:
            assert row == {"t": "abc"[number % 3], "i": number}


def planned(directory: Path, kind: str) -> tuple[Span, Path]:
    """A shard of 30 rows `i`, and its units where they are known before it is read."""
    rows = [{"i": i} for i in range(30)]
    if kind == "parquet":
        path = directory / "x.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path = write(directory, lines(*rows), kind)
    os.utime(path, (1000, 1000))
    (span,) = cut([shard_at(path)], F, 10, {"i": False})
    return span, path


@pytest.mark.parametrize("kind", ["parquet", *KINDS])
def test_rows_are_read_again_by_their_number(tmp_path: Path, kind: str) -> None:
    span, _ = planned(tmp_path, kind)
    units = list(read_units(span, ["i"], count, 10, F))
    assert read_rows(span.shard, units[1].unit, ["i"], {12, 19}) == {12: {"i": 12}, 19: {"i": 19}}
    assert read_rows(span.shard, units[2].unit, ["i"], {29}) == {29: {"i": 29}}


def test_a_bad_line_is_bad_when_it_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path, b"{}\nbad\n\n{}\n")
    (unit,) = read(path)
    again = read_rows(shard_at(path), unit.unit, [], {0, 1, 3})
    assert again == dict(unit.rows)
    assert list(again) == [0, 1, 3]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "gz"])
@pytest.mark.parametrize("change", ["rewritten", "touched", "deleted"])
def test_a_shard_that_changed_after_it_was_planned_is_not_read(
    tmp_path: Path, kind: str, change: str
) -> None:
    span, path = planned(tmp_path, kind)
    if change == "deleted":
        path.unlink()
    else:
        if change == "rewritten":
            path.write_bytes(b"something else")
        os.utime(path, (2000, 2000))
    with pytest.raises(OSError, match=r"x\."):
        list(read_units(span, ["i"], count, 10, F))


def test_a_sample_has_the_columns_and_first_rows_of_a_jsonl_shard(tmp_path: Path) -> None:
    rows = [{"a": 1}, {"b": 2, "a": 1}, {"c": 3}]
    path = write(tmp_path, b"\nbad\n" + lines(*rows), "gz")
    assert sample(shard_at(path), 2) == (["a", "b"], None, rows[:2])
    assert sample(shard_at(path), 10) == (["a", "b", "c"], None, rows)
    assert sample(shard_at(write(tmp_path, b"bad\n" * 1000 + lines(*rows))), 2) == ([], None, [])
    assert sample(shard_at(write(tmp_path, b"")), 2) == ([], None, [])


def test_a_sample_of_a_parquet_shard_is_its_schema(tmp_path: Path) -> None:
    names, schema, rows = sample(shard_at(write_groups(tmp_path / "x.parquet", [], SCHEMA)), 5)
    assert (names, rows) == (["i", "t", "r"], [])
    assert schema is not None
    assert schema.equals(SCHEMA)


def test_reading_a_shard_a_second_time_gives_the_same_units(tmp_path: Path) -> None:
    span, _ = planned(tmp_path, "gz-members")
    first, second = (list(read_units(span, [], count, 7, F)) for _ in range(2))
    assert first == second
    assert all(a.unit.first_row < b.unit.first_row for a, b in pairwise(first))
