"""Files are read by what their names say, in any case; what is something else is told as what it is."""

import gzip
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from armo_ray.errors import ConfigError
from armo_ray.score.job import prepare
from armo_ray.storage.formats import kind_of
from armo_ray.storage.shards import find_shards
from armo_ray.verify.output import verify_output
from tests.support.local import config_for, rejects_of, rows_of, score_locally

ROWS = [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": "no"} for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "name", ["a.ndjson", "a.JSONL", "a.NdJson.GZ", "a.jsonl.ZST", "a.json", "a.json.gz", "a.Parquet"]
)
def test_a_file_is_read_by_its_name_in_any_case(name: str, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".Parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix.lower() == ".gz":
        path.write_bytes(gzip.compress(LINES))
    else:
        path.write_bytes(pa.compress(LINES, "zstd", asbytes=True) if path.suffix == ".ZST" else LINES)
    score_locally(tiny_model, path, tmp_path / "out", unit_rows=2)
    assert [row["source_row"] for row in rows_of(tmp_path / "out")] == [0, 0, 1, 1, 2, 2]
    assert verify_output(str(tmp_path / "out"))[1] == []


def test_a_json_file_in_a_directory_is_passed_over_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.jsonl", "dataset_info.json", "b.csv"):
        (tmp_path / name).write_bytes(LINES)
    caplog.set_level("INFO")
    assert [Path(shard.uri).name for shard in find_shards([str(tmp_path)])] == ["a.jsonl"]
    assert "1 shard; skipped: 2 other files (.csv, .json)" in caplog.text
    found = find_shards([f"{tmp_path}/*.json"])
    assert [Path(shard.uri).name for shard in found] == ["dataset_info.json"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a.csv", r"read_csv\('.*a.csv'\)"),
        ("a.arrow", r"open_stream\('.*a.arrow'\)"),
        ("a.jsonl.bz2", "decompress it, or compress it with gzip or zstd"),
        ("a.txt", "write one JSON object per line"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_what_to_do(name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(LINES)
    with pytest.raises(ConfigError, match=told):
        find_shards([str(tmp_path / name)])
    with pytest.raises(ConfigError, match=rf"skipped: 1 other file \({Path(name).suffix}\)"):
        find_shards([str(tmp_path)])


def test_what_is_advised_for_other_kinds_makes_a_shard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.Table.from_pylist(ROWS)
    pyarrow.csv.write_csv(table, tmp_path / "a.csv")
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.csv", "b.arrow"):
        with pytest.raises(ConfigError) as refused:
            find_shards([str(tmp_path / name)])
        code = str(refused.value).split('python -c "')[1].removesuffix('"')
        exec(code, {})
        assert pq.read_table((tmp_path / name).with_suffix(".parquet")).to_pylist() == ROWS


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", json.dumps(ROWS).encode(), "it is a JSON array: write one object per line, as jq"),
        ("a.json", BOM + json.dumps(ROWS, indent=1).encode(), "it is a JSON array"),
        ("a.jsonl", json.dumps(ROWS[0], indent=1).encode(), "its objects span several lines"),
        ("a.jsonl", "".join(f"{row}\n" for row in ROWS).encode(), "its lines are Python dicts, not JSON"),
        ("a.jsonl", LINES.replace(b"\n", b"\r"), "its lines end with CR only"),
        ("a.jsonl", gzip.compress(LINES, mtime=0), "it is compressed with gzip: name it .jsonl.gz"),
        ("a.jsonl", LINES.replace(b"}", b",}"), "not valid JSON: .*line 1"),
        ("a.jsonl.gz", LINES, "it is not a gzip file, although its name says so"),
        ("a.jsonl.zst", gzip.compress(LINES, mtime=0), "it is not a zstd file, although its name says so"),
        ("a.jsonl.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0), "it is a JSON array"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_told_as_what_it_is(
    name: str, content: bytes, told: str, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name}: {told}"):
        prepare(config_for(tiny_model, tmp_path / name, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.jsonl", BOM + LINES),
        ("bom-alone.jsonl", BOM + b"\n\r\n" + LINES),
        ("crlf.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("zeros.jsonl.gz", gzip.compress(LINES, mtime=0) + bytes(1000)),
        (
            "members.jsonl.gz",
            gzip.compress(LINES[:70], mtime=0) + gzip.compress(LINES[70:], mtime=0) + bytes(512),
        ),
    ],
)
def test_marks_blank_lines_and_padding_are_no_rejects(
    name: str, content: bytes, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    score_locally(tiny_model, tmp_path / name, tmp_path / "out", unit_rows=2)
    assert len(rows_of(tmp_path / "out")) == 6
    assert rejects_of(tmp_path / "out") == []
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("lost", [1, 6, 30])
@pytest.mark.parametrize("zeros", [0, 1000])
def test_a_file_that_breaks_off_is_not_taken_for_a_padded_one(
    lost: int, zeros: int, tiny_model: Path, tmp_path: Path
) -> None:
    content = gzip.compress(
        b"".join(json.dumps(row | {"id": i}).encode() + b"\n" for row in ROWS for i in range(9))
    )
    (tmp_path / "a.jsonl.gz").write_bytes(content[:-lost] + bytes(zeros))
    (tmp_path / "b.jsonl").write_bytes(LINES)
    score_locally(tiny_model, f"{tmp_path}/*.jsonl*", tmp_path / "out")
    if lost > 3 or zeros == 0:  # the last bytes of a short file are zeros themselves
        assert "unreadable_shard" in [reason for _, _, reason in rejects_of(tmp_path / "out")]
    else:
        assert len(rows_of(tmp_path / "out")) == 60


@pytest.mark.parametrize("name", ["a.jsonl.bz2", "parquet", "a.parquet.gz", "a.jsonld", "ajson"])
def test_other_names_are_of_no_kind(name: str) -> None:
    assert kind_of(name) is None
