"""Whatever a partition value holds, its rows land in one part below the output, and read back with it."""

import datetime
import io
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armo_ray.errors import ConfigError
from armo_ray.outputs.schema import REJECTS
from armo_ray.storage.parts import fit_directories, hive, write_rejects, write_scores
from armo_ray.storage.store import Store
from tests.support.local import score_locally

pytest_plugins = ("tests.support.s3_server",)

UNIT = "0123456789abcdef" * 2
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
ODD = [
    "a/b",
    "../..",
    "..",
    ".",
    "",
    None,
    "日本",
    "a=b",
    "x y",
    "%2F",
    "50%",
    "\n\0",
    "~",
    "c:\\d",
    "*?[",
    "'\"",
    "_a",
    ".b",
]


def read_back(root: Path, **kinds: pa.DataType) -> pa.Table:
    """All rows of an output with their hive partitions, in the order of column v."""
    partitioning = ds.partitioning(pa.schema(list(kinds.items())), flavor="hive")
    return ds.dataset(root / "scores", format="parquet", partitioning=partitioning).to_table().sort_by("v")


def files_below(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_odd_partition_values_stay_below_the_output_and_read_back_equal(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    table = pa.table({"lang": ODD, "v": range(len(ODD))})
    written = write_scores(Store(str(out)), UNIT, table, [("date", "2026/11")], ["lang"])
    assert files_below(tmp_path) == sorted(f"deep/out/{part.path}" for part in written)
    assert len(written) == len(ODD)
    assert all(part.path.startswith("scores/date=2026%2F11/lang=") for part in written)
    assert all(part.path.count("/") == 3 for part in written)
    back = read_back(out, date=pa.string(), lang=pa.string())
    assert back["lang"].to_pylist() == ODD
    assert set(back["date"].to_pylist()) == {"2026/11"}


ESCAPES = [
    "../../x",
    "/etc/passwd",
    "%2e%2e/%2e%2e",
    "..%2f",
    "a\0b",
    "a\nb",
    "日本" * 30,
    "x" * 250,
    "?versionId=1",
    "::s3://a",
]


@pytest.fixture(params=["local", "s3"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """A directory or prefix, and an output deeper in it."""
    root = str(tmp_path) if request.param == "local" else str(request.getfixturevalue("s3"))
    return root, f"{root}/deep/out"


def test_what_data_name_stays_below_the_output_on_a_disk_and_on_s3(places: tuple[str, str]) -> None:
    root, out = Store(places[0]), Store(places[1])
    values = [value for value in (*ODD, *ESCAPES) if fit_directories([("lang", value)])]
    assert len(values) == len(ODD) + len(ESCAPES) - 1  # the 180 bytes of 日本 become 540
    table = pa.table({"lang": values, "v": range(len(values))})
    for outer in ("..", "%2e%2e", "../../x", "a\0b"):
        written = write_scores(out, UNIT, table, [("date", outer), (outer, "x")], ["lang"])
        for part in written:
            assert part.path.count("/") == 4
            assert not set(part.path.split("/")) & {"", ".", ".."}
        found = {path.removeprefix(f"{root.root}/deep/out/") for path in root.find("")}
        assert {part.path for part in written} <= found
        assert all(path.startswith("scores/date=") for path in found)
        for part in written:
            rows = pq.read_table(io.BytesIO(out.read(part.path)), partitioning=None)
            folder = part.path.split("/")[3]
            assert [hive("lang", values[v]) for v in rows["v"].to_pylist()] == [folder]


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_directories_of_the_input_are_told_from_its_names_and_repeated_below_the_output(
    kind: str, tiny_model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path) if kind == "local" else str(request.getfixturevalue("s3"))
    row = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    folders = ["k=%2e%2e%2f%2e%2e", "k=..", "k=%00", "k=a%0Ab", "k=日本", "k=a::b"]
    for folder in folders:
        Store(f"{root}/in").write(f"{folder}/x::file:.jsonl", row)
    score_locally(tiny_model, f"{root}/in", f"{root}/out")
    found = {path.removeprefix(Store(root).root).split("/")[-2] for path in Store(root).find("out/scores")}
    assert found == {hive("k", unquote(folder[2:])) for folder in folders}
    names = [path for path in Store(root).find("") if "/in/" not in path and "/models" not in path]
    assert all(path.startswith(f"{Store(root).root}/out/") for path in names)


def test_directories_too_long_to_be_repeated_are_refused_before_anything_is_scored(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in" / ("k=" + "日" * 80)
    folder.mkdir(parents=True)
    (folder / "x.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(ConfigError, match=r"x\.jsonl are too long to be repeated"):
        score_locally(tiny_model, tmp_path / "in", tmp_path / "out")


@settings(max_examples=100)
@given(name=st.text(min_size=1), value=st.text())
def test_a_hive_directory_is_one_plain_name(name: str, value: str) -> None:
    directory = hive(name, value)
    assert directory.isascii()
    assert directory.isprintable()
    assert directory.count("=") == 1
    assert not set(directory) & set("/\\:*?\"<>| #&+'")
    assert directory not in (".", "..")


@settings(max_examples=40)
@given(
    rows=st.lists(st.tuples(st.sampled_from([None, "a", "b/c"]), st.sampled_from([None, 1, -2])), min_size=1)
)
def test_there_is_one_part_for_each_combination_of_values_with_its_rows_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str | None, int | None]]
) -> None:
    out = tmp_path_factory.mktemp("out")
    table = pa.table(
        {
            "a": pa.array([a for a, _ in rows], pa.string()),
            "b": pa.array([b for _, b in rows], pa.int32()),
            "v": range(len(rows)),
        },
        metadata={b"armo_ray": b"{}"},
    )
    written = write_scores(Store(str(out)), UNIT, table, [], ["a", "b"])
    expected: dict[tuple[Any, Any], list[int]] = {}
    for v, key in enumerate(rows):
        expected.setdefault(key, []).append(v)
    paths = {f"scores/{hive('a', a)}/{hive('b', b)}/part-{UNIT}.parquet": v for (a, b), v in expected.items()}
    assert {part.path: part.rows for part in written} == {path: len(v) for path, v in paths.items()}
    for part in written:
        found = pq.read_table(out / part.path, partitioning=None)
        assert found.column_names == ["v"]
        assert found["v"].to_pylist() == paths[part.path]
        assert found.schema.metadata[b"armo_ray"] == b"{}"
        assert part.bytes == (out / part.path).stat().st_size
    assert read_back(out, a=pa.string(), b=pa.int32()).select(["a", "b", "v"]).to_pylist() == [
        {"a": a, "b": b, "v": v} for v, (a, b) in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        pytest.param(pa.int64(), [3, -(2**63), None], id="int"),
        pytest.param(pa.bool_(), [True, False, None], id="bool"),
        pytest.param(pa.date32(), [datetime.date(2026, 11, 20), None], id="date"),
        pytest.param(pa.float64(), [0.1, -1e300, None], id="float"),
    ],
)
def test_partition_values_of_other_types_read_back_equal(
    tmp_path: Path, kind: pa.DataType, values: list[Any]
) -> None:
    table = pa.table({"k": pa.array(values, kind), "v": range(len(values))})
    write_scores(Store(str(tmp_path)), UNIT, table, [], ["k"])
    assert read_back(tmp_path, k=kind)["k"].to_pylist() == values


def test_a_column_that_is_already_a_directory_is_not_split_again(tmp_path: Path) -> None:
    table = pa.table({"v": [1, 2]})
    (part,) = write_scores(Store(str(tmp_path)), UNIT, table, [("date", HIVE_NULL)], ["date"])
    assert part.path == f"scores/date={HIVE_NULL}/part-{UNIT}.parquet"
    assert read_back(tmp_path, date=pa.string())["date"].to_pylist() == [None, None]


def test_the_same_rows_are_written_as_the_same_bytes(tmp_path: Path) -> None:
    values = [f"v{i % 7}" for i in range(1000)]
    contents = []
    for name in ("a", "b"):
        out = tmp_path / name
        table = pa.table({"k": values, "v": range(1000)}, metadata={b"armo_ray": b"{}"})
        written = write_scores(Store(str(out)), UNIT, table, [], ["k"])
        contents.append([(part, (out / part.path).read_bytes()) for part in written])
    assert contents[0] == contents[1]
    assert len(contents[0]) == 7


def test_writing_a_unit_again_replaces_its_parts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for rows in (3, 2):
        written = write_scores(store, UNIT, pa.table({"v": range(rows)}), [], [])
    assert [part.path for part in written] == files_below(tmp_path) == [f"scores/part-{UNIT}.parquet"]
    assert pq.read_table(tmp_path / written[0].path)["v"].to_pylist() == [0, 1]


def test_a_table_without_rows_writes_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    empty = pa.table({"k": pa.array([], pa.string()), "v": pa.array([], pa.int64())})
    assert write_scores(store, UNIT, empty, [("date", "1")], []) == []
    assert write_scores(store, UNIT, empty, [("date", "1")], ["k"]) == []
    assert write_rejects(store, UNIT, REJECTS.empty_table()) == []
    assert files_below(tmp_path) == []


def test_rejects_keep_their_schema(tmp_path: Path) -> None:
    row = dict.fromkeys(REJECTS.names) | {"source": "x", "source_row": 1, "reason": "malformed_row"}
    (part,) = write_rejects(Store(str(tmp_path)), UNIT, pa.Table.from_pylist([row], schema=REJECTS))
    found = pq.read_table(tmp_path / part.path)
    assert part.path == f"rejects/part-{UNIT}.parquet"
    assert found.schema.equals(REJECTS)
    assert found.to_pylist() == [row]
