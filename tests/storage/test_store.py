"""Files appear whole or not at all, and once: on a disk and on a real S3 server alike."""

import gzip
import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FSSpecHandler, PyFileSystem

from armo_ray.errors import ConfigError
from armo_ray.storage import shards, streams
from armo_ray.storage.checkpoint import CHECKPOINT
from armo_ray.storage.commits import RUN, SUCCESS, commit, finish, list_commits, open_run
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.parts import write_scores
from armo_ray.storage.readers import Row, read_rows, read_units, sample
from armo_ray.storage.resume import to_do
from armo_ray.storage.shards import find_shards
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span, cut
from tests.support.commit_records import commit_record
from tests.support.s3_clients import forget_clients

pytest_plugins = ("tests.support.s3_server",)

F = "fingerprint"


def finished(store: Store) -> dict[str, Any]:
    """The manifest as it was written."""
    finish(store)
    return store.read_json(SUCCESS) or {}


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty directory or prefix."""
    return str(tmp_path / "out") if request.param == "local" else str(request.getfixturevalue("s3"))


@pytest.fixture
def store(root: str) -> Store:
    return Store(root)


def all_files(store: Store) -> list[str]:
    prefix = f"{store.root}/"  # not the directory itself, which a server may list
    return sorted(name.removeprefix(prefix) for name in store.fs.find(store.root) if name.startswith(prefix))


def test_a_file_is_written_read_replaced_and_deleted(store: Store) -> None:
    for content in (b"first", b"", b"x" * (6 << 20), b"last"):
        store.write("deep/er/a.bin", content)
        assert store.read("deep/er/a.bin") == content
        assert store.list_names("deep/er") == {"a.bin": len(content)}
    assert all_files(store) == ["deep/er/a.bin"]
    store.delete("deep/er/a.bin")
    store.delete("deep/er/a.bin")  # what is not there need not be deleted
    assert all_files(store) == []
    with pytest.raises(FileNotFoundError):
        store.read("deep/er/a.bin")


@pytest.mark.parametrize("first", [b"first", b""], ids=["text", "empty"])
def test_a_file_is_created_only_where_there_is_none(store: Store, first: bytes) -> None:
    assert store.create("a/b.json", first) is True
    assert store.create("a/b.json", b"second") is False
    assert store.read("a/b.json") == first
    assert all_files(store) == ["a/b.json"]
    store.delete("a/b.json")
    assert store.create("a/b.json", b"second") is True


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("a", b"before")
    (tmp_path / "folder" / "in").mkdir(parents=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))  # as a disk that is full
    try:
        for attempt in (store.write, store.create):
            with pytest.raises(OSError, match="too large"):
                attempt("a", bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(OSError, match="directory"):
        store.write("folder", b"where a directory is")
    assert all_files(store) == ["a"]
    assert store.read("a") == b"before"


def test_a_writer_that_is_killed_leaves_what_the_next_sweep_deletes(tmp_path: Path) -> None:
    code = "import sys\nfrom armo_ray.storage.store import Store\nwhile True:\n"
    code += "    Store(sys.argv[1]).write('scores/day=1/a.parquet', bytes(1 << 25))"
    while not list(tmp_path.rglob(".a.parquet.*")):
        with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as process:
            while not list(tmp_path.rglob(".a.parquet.*")):
                assert process.poll() is None
            process.kill()
    Store(str(tmp_path)).sweep(["scores"])
    assert all_files(Store(str(tmp_path))) in ([], ["scores/day=1/a.parquet"])


def test_of_many_writers_of_one_name_exactly_one_wins(store: Store) -> None:
    start = Barrier(12)

    def write(writer: int) -> bool:
        start.wait(60)
        return store.create("a/1.json", f"{writer}".encode() * 5000)

    with ThreadPoolExecutor(12) as pool:
        won = list(pool.map(write, range(12)))
    assert won.count(True) == 1
    assert store.read("a/1.json") == f"{won.index(True)}".encode() * 5000
    assert all_files(store) == ["a/1.json"]


def test_a_reader_sees_a_file_before_or_after_its_replacement_never_between(store: Store) -> None:
    contents = [letter * (1 << 20) for letter in (b"a", b"b")]
    store.write("a.bin", contents[0])
    stop = Event()

    def rewrite() -> None:
        for n in range(20):
            store.write("a.bin", contents[n % 2])
        stop.set()

    seen = []
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(rewrite)
        while not (stop.is_set() or writing.done()):
            seen.append(store.read("a.bin"))
        writing.result()
    assert seen
    assert set(seen) <= set(contents)


def test_a_listing_has_the_files_of_one_folder_with_their_sizes(store: Store) -> None:
    assert store.list_names("missing") == {}
    for name in ("f/a.json", "f/b", "f/.hidden", "f/deeper/c.json", "fg/d.json", "e.json"):
        store.write(name, name.encode())
    assert store.list_names("f") == {"a.json": 8, "b": 3}
    store.create("f/new", b"1")  # a listing is not remembered
    assert store.list_names("f") == {"a.json": 8, "b": 3, "new": 1}


def test_json_is_read_and_absent_json_is_none(store: Store) -> None:
    assert store.read_json("a.json") is None
    assert store.read_json("no/such/a.json") is None
    store.write("a.json", b'{"a": [1, null, "\\u00e9"]}')
    assert store.read_json("a.json") == {"a": [1, None, "é"]}


def test_an_output_goes_from_opened_to_finished(root: str, store: Store, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.jsonl").write_text('{"n": 1}\n')
    spans = cut(find_shards([str(tmp_path / "in")]), F, 10, {})
    run = open_run(store, {"model": "a"}, {"config": {}})
    assert open_run(Store(root), {"model": "a"}, {"config": {}}) == run
    with pytest.raises(ConfigError, match="model was 'a', now 'b'"):
        open_run(Store(root), {"model": "b"}, {})
    for done, span in enumerate(spans):
        assert to_do(store, spans, F) == spans[done:]
        (unit,) = read_units(span, [], lambda row: 1, 10, F)
        parts = write_scores(store, unit.unit.id, pa.table({"v": [done]}), [("name", f"a/{done}")], [])
        record = commit_record(
            unit.unit.id, source=span.shard.uri, candidates=1, scored=1, rejected={}, parts=tuple(parts)
        )
        commit(store, record)
        commit(store, record)
        with pytest.raises(RuntimeError, match="another run committed scored=1, this one has 0"):
            commit(store, replace(record, scored=0))
    assert to_do(store, spans, F) == []
    manifest = finished(store)
    assert manifest["totals"]["units"] == len(list_commits(store)) == 2
    assert store.read_json(SUCCESS) == manifest
    assert {RUN, SUCCESS, CHECKPOINT, *(part["path"] for part in manifest["parts"])} <= set(all_files(store))
    assert len(all_files(store)) == 3 + 2 + 2
    back = ds.dataset(
        f"{store.root}/scores",
        filesystem=PyFileSystem(FSSpecHandler(store.fs)),
        format="parquet",
        partitioning="hive",
    ).to_table()
    assert sorted(zip(back["v"].to_pylist(), back["name"].to_pylist(), strict=True)) == [
        (0, "a/0"),
        (1, "a/1"),
    ]


ROWS = [{"i": i, "text": f"é{i}" * 50} for i in range(3000)]


def count(row: Row) -> int:
    return 1


@pytest.fixture(scope="module")
def shards_on_s3(s3_of_module: str) -> str:
    """A Parquet, a gz and a damaged shard in hive directories of a prefix."""
    store = Store(s3_of_module)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=1000)
    parquet = sink.getvalue().to_pybytes()
    content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    store.write("date=2026-11-20/lang=a%2Fb/x.parquet", parquet)
    store.write("date=2026-11-21/y.jsonl.gz", gzip.compress(content))
    store.write("date=2026-11-21/z.parquet", parquet[: len(parquet) // 2])
    for name in ("_tmp/x.parquet", "date=2026-11-21/.y.jsonl", "date=2026-11-21/_SUCCESS", "readme.txt"):
        store.write(name, b"{}\n")
    return store.uri


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        pytest.param("", "x.parquet y.jsonl.gz z.parquet", id="prefix"),
        pytest.param("/", "x.parquet y.jsonl.gz z.parquet", id="prefix-with-a-slash"),
        pytest.param("/date=2026-11-21", "y.jsonl.gz z.parquet", id="hive-directory"),
        pytest.param("/date=2026-11-21/y.jsonl.gz", "y.jsonl.gz", id="object"),
        pytest.param("/date=*/*.parquet", "z.parquet", id="glob"),
        pytest.param("/**/*.parquet", "x.parquet z.parquet", id="recursive-glob"),
        pytest.param("/date=*", "x.parquet y.jsonl.gz z.parquet", id="glob-of-directories"),
        pytest.param("/date=*21/", "y.jsonl.gz z.parquet", id="glob-of-directories-with-a-slash"),
    ],
)
def test_shards_are_found_on_s3(shards_on_s3: str, pattern: str, names: str) -> None:
    found = find_shards([shards_on_s3 + pattern, shards_on_s3 + pattern])
    assert [shard.uri.rsplit("/", 1)[1] for shard in found] == names.split()
    assert all(shard.uri.startswith(shards_on_s3) for shard in found)
    assert found == [shard for shard in find_shards([shards_on_s3]) if shard in found]


def test_what_is_passed_over_on_s3_is_counted(shards_on_s3: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        find_shards([shards_on_s3])
    told = f"input {shards_on_s3}: 3 shards; skipped: 3 hidden names, 1 other file (.txt)"
    assert told in caplog.messages


def test_partitions_are_read_from_the_keys_of_s3_objects(shards_on_s3: str) -> None:
    assert [shard.partitions for shard in find_shards([shards_on_s3])] == [
        (("date", "2026-11-20"), ("lang", "a/b")),
        (("date", "2026-11-21"),),
        (("date", "2026-11-21"),),
    ]


def test_shards_on_s3_are_read_like_those_on_a_disk(shards_on_s3: str) -> None:
    spans = cut(find_shards([shards_on_s3]), F, 700, {"i": False})
    assert [len(span.units) for span in spans] == [6, 0, 1]
    for span in spans[:2]:
        units = list(read_units(span, ["i", "text"], count, 700, F))
        assert [row for unit in units for row in unit.rows] == list(enumerate(ROWS))
        assert [unit.unit.last for unit in units] == [False] * (len(units) - 1) + [True]
        assert read_rows(span.shard, units[-1].unit, ["i", "text"], {2999}) == {2999: ROWS[2999]}
        assert sample(span.shard, 3)[0] == ["i", "text"]
    assert spans[2].error is not None


def test_an_object_that_is_replaced_is_another_shard_and_is_not_read_as_the_old_one(s3: str) -> None:
    store = Store(s3)
    store.write("x.jsonl", b'{"a": 1}\n')
    (before,) = find_shards([f"{s3}/x.jsonl"])
    store.write("x.jsonl", b'{"a": 2}\n')
    (after,) = find_shards([s3])
    assert (before.hash, before.size) == (after.hash, after.size)
    assert before.identity != after.identity
    with pytest.raises(OSError, match=r"x\.jsonl changed while it was being read"):
        list(read_units(Span(before), [], count, 10, F))


def without_credentials(env: pytest.MonkeyPatch) -> None:
    env.delenv("AWS_ACCESS_KEY_ID")
    env.delenv("AWS_SECRET_ACCESS_KEY")


def with_a_wrong_secret(env: pytest.MonkeyPatch) -> None:
    env.setenv("AWS_SECRET_ACCESS_KEY", "wrong")


@pytest.mark.parametrize("change", [with_a_wrong_secret, without_credentials])
def test_wrong_or_missing_credentials_are_an_error_that_names_the_uri(
    s3: str, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    Store(s3).write("in/x.jsonl", b"{}\n")
    change(monkeypatch)
    forget_clients()
    for pattern in ("in", "in/x.jsonl", "in/*.jsonl"):
        with pytest.raises(ConfigError, match=f"input {s3}/.*cannot be listed"):
            find_shards([f"{s3}/{pattern}"])
    with pytest.raises(ConfigError, match=f"output {s3}/out: cannot be written"):
        open_run(Store(f"{s3}/out"), {"model": "a"}, {})


def test_local_paths_are_written_as_they_are_and_others_with_their_protocol(tmp_path: Path, s3: str) -> None:
    assert Store(f"{tmp_path}/out/").uri == Store(f"file://{tmp_path}/out").uri == f"{tmp_path}/out"
    assert Store(os.path.relpath(tmp_path / "out")).uri == f"{tmp_path}/out"
    assert Store(f"{s3}/out/").uri == f"{s3}/out"


def test_calls_in_parallel_return_in_order_and_raise_what_one_raised() -> None:
    assert in_parallel(lambda n: n * n, range(100)) == [n * n for n in range(100)]
    assert in_parallel(len, []) == []
    with pytest.raises(ZeroDivisionError):
        in_parallel(lambda n: 1 // n, [1, 0, 2])


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_a_shard_that_goes_in_mid_read_raises_and_makes_no_rejects(
    s3: str, suffix: str, replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_AHEAD_BYTES", 1 << 17)
    monkeypatch.setattr(streams, "CHUNK", 1 << 15)
    rows = [{"i": i, "text": os.urandom(1000).hex()} for i in range(700)]  # 1.4 MB, more than one read
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=100)
    content = {"jsonl": lines, "jsonl.gz": gzip.compress(lines, 1), "parquet": sink.getvalue().to_pybytes()}[
        suffix
    ]
    Store(s3).write(f"x.{suffix}", content)
    spans = cut(find_shards([s3]), F, 100, {"i": False})
    units = read_units(spans[0], ["i", "text"], count, 100, F)
    seen = [next(units)]
    if replaced:
        Store(s3).write(f"x.{suffix}", content[::-1])
    else:
        Store(s3).delete(f"x.{suffix}")
    with pytest.raises(OSError, match=r"[Nn]ot|exist|x\."):
        seen += units
    assert all(isinstance(row, dict) for unit in seen for _, row in unit.rows)
