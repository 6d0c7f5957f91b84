"""What is read from and written to a real S3 server through broken requests is whole, or an error says why not."""

import gzip
import json
import os
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from armo_ray.cli.main import main
from armo_ray.storage import retries, shards, streams
from armo_ray.storage import store as stores
from armo_ray.storage.commits import commit, finish, list_commits, open_run
from armo_ray.storage.readers import Row, read_units
from armo_ray.storage.resume import to_do
from armo_ray.storage.retries import is_transient
from armo_ray.storage.shards import find_shards
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span, cut
from armo_ray.verify.output import verify_output
from tests.support.commit_records import commit_record
from tests.support.fault_proxy import (
    EVERY,
    LOST,
    REFUSED,
    RESET,
    SILENT,
    SLOW,
    TRUNCATED,
    FaultProxy,
    fault_proxy,
)
from tests.support.local import rejects_of, rows_of, score_locally
from tests.support.paths import SAMPLE
from tests.support.s3_clients import forget_clients

pytest_plugins = ("tests.support.s3_server",)

F = "fingerprint"
SEEDED = random.Random(0)
ROWS = [
    {"i": i, "text": SEEDED.randbytes(300).hex(), "other": SEEDED.randbytes(300).hex()} for i in range(1500)
]
FAULTS = [name for name in REFUSED if name != "hidden"] + [RESET, LOST, TRUNCATED, SLOW]


def parquet_of(rows: list[dict[str, Any]], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, **options)
    return bytes(sink.getvalue().to_pybytes())


def lines_of(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def count(row: Row) -> int:
    return 1


def read_all(span: Span) -> list[tuple[int, Row]]:
    return [row for unit in read_units(span, ["i", "text"], count, 100, F) for row in unit.rows]


@pytest.fixture(scope="module")
def planned(s3_of_module: str) -> list[Span]:
    """The rows as Parquet, JSONL, gz and zst, written and planned without the proxy."""
    lines = lines_of(ROWS)
    contents = {
        "a.parquet": parquet_of(ROWS, row_group_size=100),
        "b.jsonl": lines,
        "c.jsonl.gz": gzip.compress(lines, 1),
        "d.jsonl.zst": pa.compress(lines, codec="zstd", asbytes=True),
    }
    for name, content in contents.items():
        Store(s3_of_module).write(name, content)
    return cut(find_shards([s3_of_module]), F, 100, {"i": False})


@pytest.fixture
def inputs(planned: list[Span], faulty: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    """What was planned, to be read by many requests through the proxy."""
    monkeypatch.setattr(shards, "_AHEAD_BYTES", 1 << 17)
    monkeypatch.setattr(streams, "CHUNK", 1 << 15)
    return planned


@pytest.mark.parametrize("fault", ["slowdown", RESET, LOST, TRUNCATED, SLOW])
def test_shards_that_are_read_through_faults_hold_every_row_and_no_reject(
    inputs: list[Span], faulty: FaultProxy, fault: str
) -> None:
    faulty.chances = {(EVERY, fault): 0.4}
    for span in inputs:
        found = read_all(span)
        assert [number for number, _ in found] == list(range(len(ROWS)))
        wanted = [{"i": r["i"], "text": r["text"]} for r in ROWS] if span.shard.is_parquet else ROWS
        assert [row for _, row in found] == wanted
    assert faulty.faults[fault] >= 8, faulty.seen


TRANSIENT = {"SlowDown": 503, "ServiceUnavailable": 503, "TooManyRequests": 429, "InternalError": 500}
TRANSIENT |= {"BadGateway": 502, "GatewayTimeout": 504, "ConditionalRequestConflict": 409}
TRANSIENT |= {"RequestTimeout": 400, "BadDigest": 400, "NoSuchUpload": 404}
FINAL = {"AccessDenied": 403, "InvalidAccessKeyId": 403, "NoSuchKey": 404, "NoSuchBucket": 404}
FINAL |= {"PreconditionFailed": 412, "InvalidArgument": 400, "NotImplemented": 501}


@pytest.mark.parametrize(("code", "status"), [*TRANSIENT.items(), *FINAL.items()])
def test_a_request_is_repeated_where_a_later_one_may_succeed(code: str, status: int) -> None:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = ClientError(answer, "GetObject")
    assert is_transient(error) == is_transient(translate_boto_error(error)) == (code in TRANSIENT)


@pytest.mark.parametrize("fault", ["internal", TRUNCATED, SILENT, "down"])
def test_a_storage_that_stays_away_in_mid_read_is_one_clear_error_and_no_damaged_shard(
    inputs: list[Span], faulty: FaultProxy, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(retries, "PATIENCE_SECONDS", 0.5)
    if fault == SILENT:
        monkeypatch.setattr(S3FileSystem, "read_timeout", 0.4 * retries.PATIENCE_SECONDS)
        forget_clients()
    attempts: list[int] = []
    for span in inputs:
        faulty.down, faulty.chances = False, {}
        units = read_units(span, ["i", "text"], count, 100, F)
        seen = [next(units)]
        faulty.down, faulty.chances = fault == "down", {("get", fault): 1.0}
        faults = faulty.faults[fault]
        with pytest.raises(
            RuntimeError, match=rf"reading {span.shard.uri}: failed \d+ times .*reached"
        ) as told:
            seen += units
        attempts.append(int(str(told.value).split(" failed ")[1].split()[0]))
        assert attempts[-1] <= 4  # after pauses of 0.05, 0.1 and 0.2 s, or half of it, the next is too long
        assert faulty.faults[fault] >= faults + attempts[-1]
        rows = [row for unit in seen for row in unit.rows]
        assert len(rows) < len(ROWS)
        assert all(isinstance(row, dict) for _, row in rows)
    assert max(attempts) > 1


def test_what_is_damaged_in_the_storage_itself_is_still_told_as_damaged(s3: str, faulty: FaultProxy) -> None:
    whole = parquet_of(ROWS, row_group_size=100)
    text = pq.ParquetFile(pa.BufferReader(whole)).metadata.row_group(0).column(1)
    at = text.data_page_offset - 5_000  # the end of the texts
    spoiled = whole[:at] + random.Random(1).randbytes(5_000) + whole[at + 5_000 :]
    Store(s3).write("x.parquet", spoiled)
    Store(s3).write("y.jsonl.gz", gzip.compress(lines_of(ROWS))[:-1000])
    faulty.chances = {(EVERY, "slowdown"): 0.2, ("get", TRUNCATED): 0.2}
    for span in cut(find_shards([s3]), F, 100, {"i": False}):
        bad = [row for _, row in read_all(span) if not isinstance(row, dict)]
        assert {row.reason for row in bad} == {"unreadable_shard"}


def test_a_plan_during_an_outage_stops_and_takes_no_shard_for_unreadable(
    s3: str, faulty: FaultProxy, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    Store(s3).write("in/a.parquet", parquet_of([{"prompt": "a", "chosen": "b", "rejected": "c"}]))
    Store(s3).write("in/b.jsonl", SAMPLE.read_bytes())
    monkeypatch.setattr(retries, "PATIENCE_SECONDS", 0.3)
    command = ["score", "--input", f"{s3}/in", "--output", f"{s3}/out", "--model", str(tiny_model)]
    for kind, what in (("list", "listing"), ("head", "(opening|listing)"), ("get", "reading")):
        faulty.chances = {(kind, "unavailable"): 1.0}
        assert main(command) == 1  # to be run again; 2 would say that the command is wrong
        assert re.search(rf"failed: {what} {s3}/.*HTTP 503", capsys.readouterr().err)
    faulty.chances = {}
    assert Store(f"{s3}/out").list_names("_commits") == {}


def test_parquet_is_read_by_ranges_and_no_more_than_the_columns_asked_for(
    s3: str, faulty: FaultProxy
) -> None:
    content = parquet_of(ROWS * 4, row_group_size=1500, use_dictionary=["i"])
    Store(s3).write("x.parquet", content)
    footer = pq.read_metadata(pa.BufferReader(content))
    sizes = [footer.row_group(1).column(c).total_compressed_size for c in range(3)]
    (span,) = cut(find_shards([s3]), F, 1500, {"i": False})
    assert faulty.sent["get"] < 70_000  # for the footer
    faulty.sent.clear()
    assert len(read_all(span)) == 6000
    assert faulty.sent["get"] < 4 * (sizes[0] + sizes[1]) + 9 * 66_000 < 0.7 * len(content)
    faulty.sent.clear()
    (unit,) = read_units(Span(span.shard, span.units[2:3]), ["text"], count, 1500, F)
    assert [number for number, _ in unit.rows] == list(range(3000, 4500))
    assert faulty.sent["get"] < sizes[1] + 3 * 66_000 < 0.3 * len(content)


CONTENT = os.urandom((10 << 20) + 1)


@pytest.mark.parametrize("fault", ["hidden", LOST])
def test_a_large_file_is_uploaded_in_parts_and_whole_though_its_completion_fails(
    s3: str, faulty: FaultProxy, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(stores, "PART_BYTES", 5 << 20)
    store = Store(s3)
    store.write("x.bin", b"before")
    faulty.seen.clear()
    faulty.next = [("complete", fault), ("part", fault), ("complete", fault)]
    store.write("x.bin", CONTENT)
    assert store.read("x.bin") == CONTENT
    assert faulty.faults[fault] >= 3
    assert faulty.seen["part"] >= 3
    assert store.list_names("") == {"x.bin": len(CONTENT)}


def test_an_upload_that_never_completes_is_an_error_and_leaves_what_was_there(
    s3: str, faulty: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(retries, "PATIENCE_SECONDS", 0.3)
    store = Store(s3)
    store.write("x.bin", b"before")
    faulty.chances = {("complete", "internal"): 1.0}
    with pytest.raises(RuntimeError, match=rf"writing {s3}/x\.bin: failed \d+ times"):
        store.write("x.bin", CONTENT)
    assert store.read("x.bin") == b"before"


@pytest.mark.parametrize("fault", ["slowdown", LOST, "mixed"])
def test_of_many_writers_through_faults_exactly_one_wins_and_knows_it(
    s3: str, faulty: FaultProxy, fault: str
) -> None:
    store = Store(s3)
    faulty.chances = {("put", f): 0.5 if f == fault else 0.1 for f in FAULTS if fault in (f, "mixed")}

    def write(k: int) -> bool:
        return store.create(f"{k % 5}.json", f"{k}".encode() * 100)

    with ThreadPoolExecutor(10) as pool:
        won = list(pool.map(write, range(20)))
    for name in range(5):
        (winner,) = [k for k in range(20) if k % 5 == name and won[k]]
        assert store.read(f"{name}.json") == f"{winner}".encode() * 100
    assert sum(faulty.faults.values()) >= 3


def test_a_run_is_opened_committed_and_finished_through_faults(s3: str, faulty: FaultProxy) -> None:
    store = Store(f"{s3}/out")
    faulty.chances = {(EVERY, f): 0.05 for f in FAULTS}
    run = open_run(store, {"model": "a"}, {})
    assert open_run(store, {"model": "a"}, {}) == run
    records = [
        commit_record(f"{k:032x}", source=f"s3://in/{k}.jsonl", candidates=1, scored=1, rejected={}, parts=())
        for k in range(12)
    ]
    for record in records:
        for _ in range(2):  # as two tasks would that do the same unit
            commit(store, record)
    assert list_commits(store) == {record.unit for record in records}
    assert to_do(store, [], F) == []
    assert finish(store).totals().units == 12
    assert (store.read_json("_SUCCESS") or {})["totals"]["candidates"] == 12
    assert sum(faulty.faults.values()) >= 10


@pytest.fixture
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listings come in pages of 100 keys, so that a second page takes no thousand objects."""
    connect = S3FileSystem.set_session

    async def connect_to_list_less(fs: S3FileSystem, *arguments: Any, **named: Any) -> Any:
        client = await connect(fs, *arguments, **named)
        client.meta.events.register(
            "provide-client-params.s3.ListObjectsV2", lambda params, **_: params | {"MaxKeys": 100}
        )
        return client

    monkeypatch.setattr(S3FileSystem, "set_session", connect_to_list_less)


@pytest.mark.usefixtures("_small_pages")
def test_a_listing_is_paged_asked_for_once_and_loses_nothing_to_faults(s3: str, faulty: FaultProxy) -> None:
    store = Store(s3)
    names = [f"in/date=2026-11-{d:02}/{k:03}.jsonl" for d in range(1, 9) for k in range(13)]
    store.fs.pipe({f"{store.root}/{name}": b"{}\n" for name in names})
    for pattern in ("in", "in/date=*/*.jsonl", "in/**/*.jsonl"):
        faulty.seen.clear()
        assert len(find_shards([f"{s3}/{pattern}"])) == 104
        assert 2 <= faulty.seen["list"] <= 4  # 2 pages, and to see that the pattern itself is no file
    assert len(find_shards([f"{s3}/in/date=*-0[12]/01*.jsonl"])) == 6
    for fault in (RESET, "slowdown", TRUNCATED):
        faulty.chances = {("list", fault): 0.3}
        for pattern in ("in", "in/date=*/*.jsonl"):
            assert len(find_shards([f"{s3}/{pattern}"])) == 104
            assert list_commits(Store(f"{s3}/in/date=2026-11-01")) == set()
    assert sum(faulty.faults.values()) >= 5


def inputs_of_all_kinds(store: Store) -> None:
    """Pairs in shards of every kind, some that cannot be scored among them, and two shards that are damaged."""
    rows = [{k: f"{k} {n}" for k in ("prompt", "chosen", "rejected")} for n in range(60)]
    rows[7]["chosen"] = ""
    store.write("date=1/a.parquet", parquet_of(rows[:25], row_group_size=5))
    store.write("date=1/b.jsonl", lines_of(rows[25:40]) + b"no JSON\n")
    store.write("date=2/c.jsonl.gz", gzip.compress(lines_of(rows[40:]))[:-40])
    store.write("date=2/d.parquet", parquet_of(rows[:10])[:-50])


def compared(output: str) -> tuple[list[tuple[Any, ...]], list[tuple[int, int | None, str]]]:
    """Scores and rejects, to be compared between outputs of shards in different places."""
    rows = [(r["source"].rsplit("/", 1)[1], r["source_row"], r["candidate"]) for r in rows_of(output)]
    return [
        (*key, round(r["score"], 4), r["prompt_id"]) for key, r in zip(rows, rows_of(output), strict=True)
    ], rejects_of(output)


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("undisturbed")
    inputs_of_all_kinds(Store(str(root / "in")))
    score_locally(tiny_model, root / "in", root / "out", unit_rows=10)
    return compared(str(root / "out"))


def test_a_whole_run_through_faults_equals_the_undisturbed_one(
    s3: str, faulty: FaultProxy, tiny_model: Path, undisturbed: Any
) -> None:
    inputs_of_all_kinds(Store(f"{s3}/in"))
    faulty.chances = {(EVERY, fault): 0.05 for fault in FAULTS}
    manifest = score_locally(tiny_model, f"{s3}/in", f"{s3}/out", unit_rows=10)
    faults = sum(faulty.faults.values())
    faulty.chances = {}
    check_equal(f"{s3}/out", manifest, undisturbed)
    assert faults >= 30


def check_equal(output: str, manifest: dict[str, Any], undisturbed: Any) -> None:
    totals = manifest["totals"]
    assert totals["scored"] + sum(totals["rejected"].values()) == totals["candidates"]
    scores, rejects = compared(output)
    assert (len(scores), len(rejects)) == (totals["scored"], sum(totals["rejected"].values()))
    assert (scores, rejects) == undisturbed
    assert verify_output(output)[1] == []


@pytest.mark.nightly
def test_a_server_that_is_killed_and_comes_back_costs_a_run_nothing(
    start_s3: Any,
    s3: str,
    tiny_model: Path,
    undisturbed: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        first = ExitStack()
        proxy = stack.enter_context(fault_proxy(first.enter_context(start_s3(tmp_path))))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setattr(retries, "LONGEST_PAUSE_SECONDS", 0.5)
        forget_clients()
        inputs_of_all_kinds(Store("s3://armo/in"))
        proxy.chances = {(EVERY, SLOW): 1.0}  # so that the run is not over before
        running = pool.submit(score_locally, tiny_model, "s3://armo/in", "s3://armo/out", unit_rows=10)
        while not Store("s3://armo/out").list_names("_commits"):
            time.sleep(0.05)
        first.close()  # by SIGKILL
        committed, failed = proxy.seen["put"], proxy.failed
        while proxy.failed == failed:  # until the run has found no server
            time.sleep(0.05)
        assert not running.done()
        proxy.chances = {}
        proxy.port = int(stack.enter_context(start_s3(tmp_path)).rsplit(":", 1)[1])
        manifest = running.result(120)
        assert committed < proxy.seen["put"]
        check_equal("s3://armo/out", manifest, undisturbed)
