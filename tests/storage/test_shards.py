"""Shards are found once and in order; units hold every row once, under ids that nothing else moves."""

import os
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armo_ray.errors import ConfigError
from armo_ray.storage.shards import Shard, find_shards, open_shard
from armo_ray.storage.units import UNIT_BYTES, Span, Unit, cut, spread

F = "fingerprint"
NAMES = [
    "a/train_0.jsonl",
    "a/train-1.parquet",
    "a/deep/x.jsonl.gz",
    "b/y.jsonl.zst",
    "z.jsonl",
    *("notes.txt", "a/x.json", "a/x.jsonl.bz2", "a/parquet"),
    *("a/_commits/0.jsonl", "a/.hidden/x.parquet", "a/_x.jsonl", "b/.x.parquet", "_tmp/x.parquet"),
]
VISIBLE = sorted(NAMES[:5])


def write(path: Path, content: bytes = b"{}\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in NAMES:
        write(tmp_path / name)
    return tmp_path


def found_in(tree: Path, *inputs: str) -> list[str]:
    """The names of the shards under some inputs, relative to a directory."""
    return [
        Path(shard.uri).relative_to(tree).as_posix() for shard in find_shards([f"{tree}/{i}" for i in inputs])
    ]


def write_groups(path: Path, groups: list[pa.Table], **options: Any) -> Path:
    """A Parquet file with a row group for each table."""
    with pq.ParquetWriter(path, groups[0].schema, **options) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=max(group.num_rows, 1))
    return path


def span_of(
    path: Path, unit_rows: int = 100, columns: dict[str, bool] | None = None, fingerprint: str = F
) -> Span:
    (span,) = cut(find_shards([str(path)]), fingerprint, unit_rows, columns or {})
    return span


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        pytest.param([""], VISIBLE, id="directory"),
        pytest.param(["a"], VISIBLE[:3], id="subdirectory"),
        pytest.param(["z.jsonl"], ["z.jsonl"], id="file"),
        pytest.param(["a/_x.jsonl"], ["a/_x.jsonl"], id="a-hidden-file-by-name"),
        pytest.param(["a/_commits"], ["a/_commits/0.jsonl"], id="a-hidden-directory-by-name"),
        pytest.param(["*/*.jsonl"], ["a/train_0.jsonl"], id="glob"),
        pytest.param(["**/*.jsonl*"], [n for n in VISIBLE if ".jsonl" in n], id="recursive-glob"),
        pytest.param(["?.jsonl"], ["z.jsonl"], id="question-mark"),
        pytest.param(["a/train*.jsonl"], ["a/train_0.jsonl"], id="an-underscore-after-the-star"),
        pytest.param(
            ["[ab]/*"], ["a/train-1.parquet", "a/train_0.jsonl", "b/y.jsonl.zst"], id="set-of-characters"
        ),
        pytest.param(["[ab]"], [n for n in VISIBLE if "/" in n], id="glob-of-directories"),
        pytest.param(["?/"], [n for n in VISIBLE if "/" in n], id="glob-of-directories-with-a-slash"),
        pytest.param(["*"], ["z.jsonl"], id="glob-of-files-and-directories"),
        pytest.param(["[ab_]*"], [n for n in VISIBLE if "/" in n], id="glob-of-directories-and-hidden-names"),
        pytest.param(["z.jsonl", "a", "a/../z.jsonl", "*.jsonl", ""], VISIBLE, id="the-same-shards-again"),
    ],
)
def test_inputs_name_shards_once_sorted_and_without_hidden_ones(
    tree: Path, inputs: list[str], names: list[str]
) -> None:
    assert found_in(tree, *inputs) == names
    assert found_in(tree, *reversed(inputs)) == names


@pytest.mark.parametrize(
    ("name", "told"),
    [
        pytest.param(
            "notes.txt", r"ends in .parquet, .jsonl or .ndjson \(.gz, .zst\): ", id="another-suffix"
        ),
        pytest.param("missing.jsonl", "no .parquet, .jsonl", id="missing-file"),
        pytest.param("missing/*.jsonl", "no .parquet, .jsonl", id="glob-without-a-match"),
        pytest.param("*.txt", "no .parquet, .jsonl", id="glob-of-another-suffix"),
        pytest.param("empty", "no .parquet, .jsonl", id="empty-directory"),
    ],
)
def test_an_input_without_shards_is_refused_by_name(tree: Path, name: str, told: str) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(ConfigError, match=told) as caught:
        found_in(tree, "z.jsonl", name)
    assert f"{tree}/{name}" in str(caught.value)


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ConfigError, match="nosuch://x/y"):
        find_shards(["nosuch://x/y.jsonl"])


def test_a_symbolic_link_to_a_shard_is_found_as_the_shard_it_names(tmp_path: Path) -> None:
    blob = write(tmp_path / "blobs" / "0123", b'{"a": 1}\n{"a": 2}\n')
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "train.jsonl").symlink_to(blob)
    (shard,) = find_shards([str(tmp_path / "snapshot")])
    assert shard == find_shards([str(tmp_path / "snapshot" / "train.jsonl")])[0]
    with open_shard(shard) as stream:
        assert stream.read() == blob.read_bytes()


def linked(tree: Path, **links: str) -> Path:
    """A directory `in` with symbolic links, by name, to paths relative to it; `__` in a name is a slash."""
    for name, target in links.items():
        path = tree / "in" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(path.parent / target)
    return tree / "in"


def test_directories_behind_links_are_read_once_and_loops_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "in" / "a" / "x.jsonl")
    write(tmp_path / "store" / "deep" / "y.jsonl")
    links = {"a__up": "..", "b": "../store", "c": "../store/deep", "d": "a", "e__self": "../e"}
    linked(tmp_path, **links)
    (tmp_path / "store" / "back").symlink_to(tmp_path / "in")
    with caplog.at_level("INFO"):
        assert found_in(tmp_path, "in") == ["in/a/x.jsonl", "in/b/deep/y.jsonl"]
    assert caplog.messages == [f"input {tmp_path}/in: 2 shards; skipped: 5 links to directories already read"]


def test_a_glob_reads_links_by_the_names_that_it_matches(tmp_path: Path) -> None:
    write(tmp_path / "in" / "v3" / "x.jsonl")
    linked(tmp_path, latest="v3", v3__up="..")
    assert found_in(tmp_path, "in/lat*/*.jsonl") == ["in/latest/x.jsonl"]
    assert found_in(tmp_path, "in/**/*.jsonl") == ["in/v3/x.jsonl"]


@pytest.mark.parametrize(
    "inputs", [["in"], ["in/*.jsonl"], ["in/a.jsonl", "in/z.jsonl"], ["in/a.jsonl", "in"]]
)
def test_a_file_under_several_names_is_one_shard_by_its_own_name(tmp_path: Path, inputs: list[str]) -> None:
    write(tmp_path / "in" / "z.jsonl")
    linked(tmp_path, **{"a.jsonl": "z.jsonl"})
    assert found_in(tmp_path, *inputs) == found_in(tmp_path, *reversed(inputs)) == ["in/z.jsonl"]


def test_of_links_to_a_file_elsewhere_the_first_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl")
    linked(tmp_path, **{"b.jsonl": "../x.jsonl", "c.jsonl": "../x.jsonl"})
    assert found_in(tmp_path, "in") == ["in/b.jsonl"]
    assert found_in(tmp_path, "in", "x.jsonl") == ["x.jsonl"]


def test_a_hard_link_is_a_shard_of_its_own_as_a_copy_is(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl")
    (tmp_path / "in" / "b.jsonl").hardlink_to(tmp_path / "in" / "a.jsonl")
    assert found_in(tmp_path, "in") == ["in/a.jsonl", "in/b.jsonl"]


def test_what_is_passed_over_is_counted_by_kind_in_one_line(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tree / "lost.jsonl").symlink_to(tree / "nowhere.jsonl")
    (tree / "ring.jsonl").symlink_to(tree / "ring.jsonl")
    (tree / "again.jsonl").symlink_to(tree / "z.jsonl")
    with caplog.at_level("INFO"):
        found_in(tree, "")
    assert caplog.messages == [
        f"input {tree}/: 5 shards; skipped: 2 broken links, 5 hidden names, 1 link to a shard already read, "
        "4 other files (.bz2, .json, .txt, no suffix)"
    ]
    caplog.clear()
    with pytest.raises(ConfigError, match=r"no \.parquet"):
        found_in(tree, "lost.jsonl")
    assert "1 broken link" in caplog.text


def test_shards_of_one_name_in_several_directories_share_no_id(tmp_path: Path) -> None:
    tables = [pa.table({"c": ["x"] * 250})]
    for name in ("a", "b", "b/a"):
        (tmp_path / name).mkdir()
        write_groups(tmp_path / name / "part-0.parquet", tables)
        os.utime(tmp_path / name / "part-0.parquet", (1000, 1000))
    spans = cut(find_shards([str(tmp_path)]), F, 100, {})
    ids = [unit.id for span in spans for unit in span.units]
    assert len(ids) == 9
    assert len(set(ids)) == 9


@pytest.mark.parametrize(
    ("folders", "partitions"),
    [
        pytest.param("plain", (), id="none"),
        pytest.param("date=2026-11-20", (("date", "2026-11-20"),), id="one"),
        pytest.param(
            "date=2026/lang=a%2Fb%3D%E6%97%A5", (("date", "2026"), ("lang", "a/b=日")), id="percent-encoded"
        ),
        pytest.param("a%20b=/deep", (("a b", ""),), id="empty-value"),
    ],
)
def test_hive_directories_become_partitions(
    tmp_path: Path, folders: str, partitions: tuple[tuple[str, str], ...]
) -> None:
    write(tmp_path / folders / "x.jsonl")
    (shard,) = find_shards([str(tmp_path)])
    assert shard.partitions == partitions


def test_identity_changes_with_the_content_and_only_with_it(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", b'{"a": 1}\n')
    os.utime(path, (1000, 1000))
    (before,) = find_shards([str(path)])
    assert find_shards([str(tmp_path)]) == [before]
    path.write_bytes(b'{"a": 2}\n')
    os.utime(path, (1000, 1000.001))
    (same_size,) = find_shards([str(path)])
    path.write_bytes(b'{"a": 10}\n')
    os.utime(path, (1000, 1000))
    (same_time,) = find_shards([str(path)])
    assert len({before.identity, same_size.identity, same_time.identity}) == 3
    assert before.hash == same_size.hash == same_time.hash
    with pytest.raises(OSError, match=r"x\.jsonl changed while it was being read"):
        open_shard(before)


@settings(max_examples=80)
@given(
    counts=st.lists(st.lists(st.integers(0, 4), max_size=40), min_size=1, max_size=6),
    unit_rows=st.integers(1, 50),
    listed=st.booleans(),
)
def test_units_hold_every_row_once_and_are_about_as_large_as_asked(
    tmp_path_factory: pytest.TempPathFactory, counts: list[list[int]], unit_rows: int, listed: bool
) -> None:
    kind = pa.list_(pa.string()) if listed else pa.string()
    groups = [pa.table({"c": pa.array([["x"] * n if listed else "x" for n in c], kind)}) for c in counts]
    path = write_groups(tmp_path_factory.getbasetemp() / "units.parquet", groups)
    footer = pq.read_metadata(path)
    sizes = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
    starts = [0, *accumulate(sizes)]
    # what a footer tells of candidates: an empty list counts as one
    weights = [max(n, 1) if listed else 1 for c in counts for n in c]
    span = span_of(path, unit_rows, {"c": listed})

    assert [unit.ordinal for unit in span.units] == list(range(len(span.units)))
    assert [unit.last for unit in span.units] == [False] * (len(span.units) - 1) + [True]
    assert len({unit.id for unit in span.units}) == len(span.units)
    assert sum(unit.source_bytes for unit in span.units) <= span.shard.size
    at = 0
    for unit in span.units:
        assert unit.first_row == at
        assert starts[unit.group_start] + unit.skip_rows == at
        at += unit.num_rows
        assert at <= starts[unit.group_stop]
        if unit.num_rows:
            group_rows = starts[unit.group_stop] - starts[unit.group_start]
            weight = sum(weights[starts[unit.group_start] : starts[unit.group_stop]])
            pieces = -(-weight // unit_rows)
            assert unit.num_rows <= -(-group_rows // pieces)
            assert pieces == 1 or unit.group_stop == unit.group_start + 1
    assert at == footer.num_rows == len(weights)
    for a, b in pairwise(span.units):  # what could be one unit is one
        if a.skip_rows == 0 == b.skip_rows and a.group_start != b.group_start:
            assert sum(weights[a.first_row : starts[b.group_start + 1]]) > unit_rows


TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "columns", "units"),
    [
        pytest.param({"c": "x"}, {"c": False}, 1, id="one-text"),
        pytest.param({"c": "x", "r": "y"}, {"c": False, "r": False}, 2, id="a-pair"),
        pytest.param({"c": ["x"] * 4}, {"c": True}, 4, id="list-of-texts"),
        pytest.param({"c": ["x"], "r": ["y"] * 3}, {"c": False, "r": False}, 4, id="a-pair-of-lists"),
        pytest.param({"c": TURNS, "r": TURNS}, {"c": False, "r": False}, 2, id="a-pair-of-conversations"),
        pytest.param({"p": TURNS, "c": "x"}, {"c": False}, 1, id="a-conversation-that-is-no-candidate"),
        pytest.param({"p": "x"}, {"c": True}, 1, id="without-the-column"),
    ],
)
def test_candidates_are_counted_by_the_columns_that_hold_them(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, bool], units: int
) -> None:
    path = write_groups(tmp_path / "x.parquet", [pa.Table.from_pylist([row] * 100)])
    assert [unit.num_rows for unit in span_of(path, 100, columns).units] == [100 // units] * units


def test_a_unit_holds_no_more_text_than_its_limit(tmp_path: Path) -> None:
    rows = pa.table({"c": ["x" * (1 << 20)] * 70})
    options = {"use_dictionary": False, "compression": "zstd"}
    large = write_groups(tmp_path / "large.parquet", [rows], **options)
    small = write_groups(tmp_path / "small.parquet", [rows.slice(i, 10) for i in range(0, 70, 10)], **options)
    assert UNIT_BYTES == 64 << 20
    assert [unit.num_rows for unit in span_of(large, 10_000).units] == [35, 35]
    assert [unit.num_rows for unit in span_of(small, 10_000).units] == [60, 10]


def test_ids_depend_on_the_shard_the_run_and_the_range_and_on_nothing_else(tmp_path: Path) -> None:
    groups = [pa.table({"c": ["x"] * 100})] * 3
    path = write_groups(tmp_path / "x.parquet", groups)
    ids = [unit.id for unit in span_of(path).units]
    assert len(set(ids)) == 3
    assert all(len(id_) == 32 and id_.startswith(span_of(path).shard.hash) for id_ in ids)

    other = write_groups(tmp_path / "a.parquet", groups)
    spans = cut(find_shards([str(tmp_path)]), F, 100, {"c": False})
    assert [unit.id for unit in spans[1].units] == ids  # listed after another, with other columns
    assert ids[2] in [unit.id for unit in span_of(path, 200).units]  # the same range between other units
    assert not {unit.id for unit in span_of(path, 50).units} & set(ids)
    assert not {unit.id for unit in span_of(path, fingerprint="another").units} & set(ids)
    assert not {unit.id for unit in span_of(other).units} & set(ids)
    os.utime(path, (1000, 1000))
    assert not {unit.id for unit in span_of(path).units} & set(ids)


@pytest.mark.parametrize("groups", [0, 1], ids=["no-row-group", "an-empty-row-group"])
def test_an_empty_parquet_shard_is_one_unit_without_rows(tmp_path: Path, groups: int) -> None:
    empty = pa.table({"c": pa.array([], pa.string())})
    with pq.ParquetWriter(tmp_path / "x.parquet", empty.schema) as writer:
        for _ in range(groups):
            writer.write_table(empty)
    (unit,) = span_of(tmp_path / "x.parquet").units
    assert (unit.ordinal, unit.first_row, unit.num_rows, unit.last) == (0, 0, 0, True)


def damaged(whole: bytes, how: str) -> bytes:
    """A Parquet file that is cut short, is something else, or whose footer names a column in no encoding."""
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    ways = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b'{"a": 1}\n',
        "column-name": whole[:footer] + whole[footer:].replace(b"candidates", b"\xff" * 10),
    }
    assert ways[how] != whole
    return ways[how]


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "column-name"])
def test_a_parquet_shard_that_cannot_be_opened_is_one_unit_with_an_error(tmp_path: Path, how: str) -> None:
    whole = write_groups(tmp_path / "b.parquet", [pa.table({"candidates": ["x"] * 100})]).read_bytes()
    write(tmp_path / "a.parquet", damaged(whole, how))
    bad, good = cut(find_shards([str(tmp_path)]), F, 100, {"candidates": False})
    assert bad.error is not None
    assert [(unit.num_rows, unit.last) for unit in bad.units] == [(0, True)]
    assert good.error is None
    assert [unit.num_rows for unit in good.units] == [100]


@given(groups=st.lists(st.integers(1, 5), max_size=40))
def test_spread_spans_hold_the_same_units_and_no_row_group_is_read_by_two_tasks(groups: list[int]) -> None:
    units = tuple(
        Unit(f"{g}.{k}", 0, group_start=g) for g, pieces in enumerate(groups) for k in range(pieces)
    )
    whole = Span(Shard("/in/a.parquet", 10, "10-1", ()), units)
    runs = spread([whole])
    assert tuple(unit for run in runs for unit in run.units) == units
    assert all(a.units[-1].group_start != b.units[0].group_start for a, b in pairwise(runs))
    assert all(len(run.units) <= 8 + max(groups, default=0) for run in runs)
