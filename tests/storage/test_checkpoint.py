"""The checkpoint of the commit records says what their files say, and is not believed where it does not."""

import json
import logging
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.outputs.scores import open_scores
from armo_ray.storage import checkpoint, commits, resume
from armo_ray.storage.checkpoint import CHECKPOINT
from armo_ray.storage.commits import COMMITS, SUCCESS, commit, finish, open_run, read_commits, read_log
from armo_ray.storage.parts import write_scores
from armo_ray.storage.records import CommitRecord, MergedUnit, PartEntry, Totals
from armo_ray.storage.shards import hash_of
from armo_ray.storage.stamps import stamps_in
from armo_ray.storage.store import Store
from armo_ray.verify.output import verify_output
from tests.support.commit_records import commit_record, committed
from tests.support.fault_proxy import FaultProxy

pytest_plugins = ("tests.support.s3_server",)

U1, U2, U3, U4 = ("0" * 31 + digit for digit in "1234")
SHARDS = ["/in/date=1/a.jsonl", "/in/é.jsonl", "/in/b.parquet"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


@pytest.fixture
def finished(store: Store) -> Store:
    """An output of three units, with its checkpoint."""
    open_run(store, {"model": "a"}, {})
    for unit, source in ((U1, "/in/b.jsonl"), (U2, "/in/a.jsonl"), (U3, "/in/c.jsonl")):
        record = committed(source=source).record
        parts = (PartEntry(f"scores/date=1/part-{unit}.parquet", 8, 1000, "0" * 32),)
        commit(store, replace(record, unit=unit, parts=parts))
    finish(store)
    return store


def from_files(store: Store) -> list[CommitRecord]:
    records = [commits.read_record(store, unit) for unit in sorted(commits.list_commits(store))]
    return sorted(records, key=lambda record: (record.source, record.first_row))


def garble(store: Store, unit: str) -> None:
    """Damage a record's file without a trace in a listing: whoever opens the file fails."""
    path = Path(store.path(f"{COMMITS}/{unit}.json"))
    found = path.stat()
    path.write_bytes(b"x" * found.st_size)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


numbers = st.integers(0, 2**53)
contents = st.sampled_from(["", None, "0" * 32])


@st.composite
def records(draw: st.DrawFn) -> list[CommitRecord]:
    """Records of units of several shards: some as old versions wrote them, some with what later ones may add."""
    found = []
    for i in range(draw(st.integers(0, 5))):
        source = draw(st.sampled_from(SHARDS))
        changes: dict[str, Any] = {
            name: draw(numbers) for name in ("first_row", "candidates", "scored", "num_tokens")
        }
        changes["rejected"] = draw(st.dictionaries(st.sampled_from(["poison", "too_long"]), numbers))
        changes["content"] = draw(contents)
        changes["extra"] = draw(st.sampled_from([(), (("novel", [1, None, {"a": 2.5}]), ("num_packs", 3))]))
        part = PartEntry("", draw(numbers), 9, draw(st.sampled_from([None, "1" * 32])))
        unit = f"{hash_of(source)}{i:016x}"
        paths = draw(st.sampled_from([[], ["scores/date=1/"], ["scores/", "rejects/"]]))
        extra = draw(st.sampled_from([(), (("novel", 1),)]))
        parts = tuple(replace(part, path=f"{p}part-{unit}.parquet", extra=extra) for p in paths)
        record = commit_record(unit, source=source, parts=parts, ordinal=draw(st.integers(0, 3)), **changes)
        record = replace(record, last=draw(st.booleans()))
        if draw(st.booleans()):
            merged = [MergedUnit(f"{unit[:16]}{j:016x}", j, 1, draw(contents)) for j in range(i, i + 2)]
            record = replace(record, merged=tuple(merged))
        if draw(st.booleans()):
            whole = committed(peak_flops=draw(st.sampled_from([None, 100.0]))).record
            record = replace(record, timing=whole.timing, passes=whole.passes, extra=())
            seconds = draw(st.dictionaries(st.sampled_from(["read", "model"]), st.sampled_from([0, 0.5])))
            record = replace(record, timing=replace(whole.timing, seconds=seconds))  # type: ignore[type-var]
        found.append(record)
    return found


@settings(max_examples=20)
@given(found=records())
def test_records_and_their_sums_are_the_same_with_a_checkpoint_as_from_their_files(
    found: list[CommitRecord], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(str(tmp_path_factory.mktemp("out")))
    for record in found:
        commit(store, record)
    expected = from_files(store)
    read_log(store).write_checkpoint(store, None)
    log = read_log(store)
    assert bool(log.checkpoint) == bool(found) or log.read  # a row cannot hold every record
    assert [r.to_json() for r in read_commits(store)] == [r.to_json() for r in expected]
    assert log.totals() == Totals.of(expected)
    some = {expected[0].source} if expected else set()
    assert log.totals(sources=some) == Totals.of(r for r in expected if r.source in some)
    assert log.sources() == {record.source for record in expected}
    assert log.read_units() == {unit.unit for record in expected for unit in record.ranges()} | log.units
    assert log.parts() == [part for record in expected for part in record.parts]
    assert log.unfinished() == [source for source in sorted(log.sources()) if is_unfinished(source, expected)]
    sums = {(part.path, part.rows, part.bytes) for part in log.folders()}
    folders = {part.path.rpartition("/")[0] + "/" for part in log.parts()}
    assert sums == {(f, *(sum(v) for v in zip(*of(f, log.parts()), strict=True))) for f in folders}


def is_unfinished(source: str, records: list[CommitRecord]) -> bool:
    own = [record for record in records if record.source == source]
    own.sort(key=lambda record: (record.ordinal, record.last))
    starts = [sum(before.num_units for before in own[:i]) for i in range(len(own))]
    return [record.ordinal for record in own] != starts or not own[-1].last


def of(folder: str, parts: list[PartEntry]) -> list[tuple[int, int]]:
    return [(part.rows, part.bytes) for part in parts if part.path.rpartition("/")[0] + "/" == folder]


def test_only_the_files_of_units_that_the_checkpoint_lacks_are_read(finished: Store) -> None:
    before = from_files(finished)
    garble(finished, U1)
    garble(finished, U3)
    commit(finished, replace(before[0], unit=U4, source="/in/d.jsonl", parts=()))
    assert [record.unit for record in read_log(finished).read] == [U4]
    assert finish(finished).totals().units == 4
    assert read_log(finished).read == []
    assert [record for record in read_commits(finished) if record.unit != U4] == before


def test_the_parts_of_what_the_checkpoint_holds_are_summed_once_and_again_when_a_row_counts_no_more(
    finished: Store,
) -> None:
    first = from_files(finished)[0]
    part = replace(first.parts[0], path=f"scores/part-{U4}.parquet")
    commit(finished, replace(first, unit=U4, source="/in/d.jsonl", parts=(part,)))
    finish(finished)
    found = checkpoint.find(finished)
    assert found is not None
    assert found.sums == checkpoint.sum_parts(found.batches())
    assert found.sums.number == len(read_log(finished).parts()) == 4
    resume.drop(finished, [U1])
    log = read_log(finished)
    assert log.num_parts == len(log.parts()) == 3
    finish(finished)
    left = checkpoint.find(finished)
    assert left is not None
    assert left.sums == checkpoint.sum_parts(left.batches())
    assert log.parts_digest == f"{left.sums.digest:032x}"


def test_a_checkpoint_of_an_earlier_version_without_sums_gives_the_same_manifest(finished: Store) -> None:
    before = read_log(finished)
    found = checkpoint.find(finished)
    assert found is not None
    checkpoint.write(finished, found.batches(), found.run_fingerprint)
    log = read_log(finished)
    assert log.read == []
    assert (log.num_parts, log.parts_digest, log.folders()) == (
        before.num_parts,
        before.parts_digest,
        before.folders(),
    )


def test_a_checkpoint_of_an_earlier_version_without_merged_units_is_used(
    finished: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, found = read_log(finished), checkpoint.find(finished)
    assert found is not None
    rows = [batch.select(checkpoint._EARLIER.names) for batch in found.batches()]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "SCHEMA", checkpoint._EARLIER)
        checkpoint.write(finished, rows, found.run_fingerprint, found.sums)
    log = read_log(finished)
    assert log.read == []
    assert list(log.records()) == list(before.records())
    assert (log.read_units(), log.unfinished()) == (before.units, [])
    assert verify_checkpoint(finished) == []


def test_verify_names_a_checkpoint_whose_sums_are_not_those_of_its_rows(finished: Store) -> None:
    found = checkpoint.find(finished)
    assert found is not None
    assert found.sums is not None
    wrong = found.sums._replace(digest=found.sums.digest + 1)
    checkpoint.write(finished, found.batches(), found.run_fingerprint, wrong)
    assert any("sums of the parts" in fault for fault in verify_checkpoint(finished))


def test_a_record_that_was_deleted_or_written_again_counts_as_its_file_says(finished: Store) -> None:
    first, _, third = from_files(finished)
    name = f"{COMMITS}/{first.unit}.json"
    finished.write(name, replace(first, num_tokens=first.num_tokens + 1).to_json())  # of the same size
    finished.delete(f"{COMMITS}/{third.unit}.json")
    log = read_log(finished)
    assert [record.num_tokens for record in log.read] == [first.num_tokens + 1]
    assert sorted(log.records(), key=lambda r: r.source) == from_files(finished)
    assert log.totals() == Totals.of(from_files(finished))
    assert verify_checkpoint(finished) == []
    finish(finished)
    assert read_log(finished).read == []
    assert pq.read_table(finished.path(CHECKPOINT)).num_rows == 2


def test_what_is_dropped_counts_no_more(finished: Store) -> None:
    resume.drop(finished, [U1])
    assert {record.unit for record in read_commits(finished)} == {U2, U3}
    assert read_log(finished).totals().units == 2


def test_a_late_writer_of_other_bytes_is_seen_although_its_record_was_in_the_checkpoint(store: Store) -> None:
    first, second = (tuple(write_scores(store, U1, pa.table({"score": [x] * 8}), [], [])) for x in (0.1, 0.2))
    commit(store, commit_record(U1, parts=first))
    finish(store)
    commit(store, commit_record(U1, parts=second))
    (found,) = read_commits(store)
    assert found.parts == second
    assert finish(store).parts() == list(second)


def other_run(store: Store) -> bytes:
    other = Store(f"{store.root}-other")
    checkpoint.write(other, checkpoint.exact([commit_record(U1)], {U1: "1"}), "0" * 32)
    return other.read(CHECKPOINT)


def other_columns(store: Store) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"unit": [U1]}), sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(lambda store: b"", "cannot be read", id="empty"),
        pytest.param(lambda store: store.read(CHECKPOINT)[:-100], "cannot be read", id="truncated"),
        pytest.param(other_columns, "its columns are not", id="columns"),
        pytest.param(other_run, "belongs to another run", id="another-run"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_ignored_told_by_verify_and_repaired(
    finished: Store, caplog: pytest.LogCaptureFixture, change: Any, told: str
) -> None:
    expected = from_files(finished)
    finished.write(CHECKPOINT, change(finished))
    caplog.set_level(logging.INFO)
    assert list(read_log(finished, commits.read_run(finished)).read) != []
    assert [told in line for line in caplog.messages] == [True]
    assert any(told in fault and CHECKPOINT in fault for fault in verify_output(finished.uri)[1])
    finish(finished)
    assert read_log(finished, commits.read_run(finished)).read == []
    assert read_commits(finished) == expected


def test_no_flip_in_a_checkpoint_changes_what_is_read(finished: Store) -> None:
    expected, content = from_files(finished), finished.read(CHECKPOINT)
    rng, run = random.Random(0), commits.read_run(finished)
    for at in [*range(len(content) - 1, 0, -53), *rng.sample(range(len(content)), 40)]:
        flipped = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        finished.write(CHECKPOINT, flipped)
        assert read_commits(finished, run=run) == expected
        assert len(read_log(finished, run).read) == 3


def verify_checkpoint(store: Store) -> list[str]:
    return [fault for fault in verify_output(store.uri)[1] if CHECKPOINT in fault]


def test_a_checkpoint_that_differs_from_the_records_is_found_and_repaired(
    scored_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = copy_of(scored_pairs, tmp_path / "out")
    finish(store)
    run, log = commits.read_run(store), read_log(store)
    first, *others = sorted(log.records(), key=lambda record: record.unit)
    listed = stamps_in(store, COMMITS)
    stamps = dict(zip(*(column.to_pylist() for column in listed), strict=True))
    (wrong,) = checkpoint.exact([replace(first, scored=first.scored + 1), *others], stamps)
    checkpoint.write(store, [wrong], run.fingerprint)
    assert verify_output(store.uri)[1] == [
        f"{CHECKPOINT}: its rows of 1 units are not their records, the first is {first.unit}"
    ]
    assert main(["verify", store.uri, "--repair"]) == 0
    assert f"{CHECKPOINT}: written again" in capsys.readouterr().out
    assert verify_output(store.uri)[1] == []
    assert read_log(store, run).read == []


def copy_of(output: Path, copy: Path) -> Store:
    source, store = Store(str(output)), Store(str(copy))
    for path in source.find(""):
        name = path.removeprefix(f"{source.root}/")
        store.write(name, source.read(name))
    return store


def test_a_copy_whose_files_have_other_times_is_read_from_the_records_themselves(
    scored_pairs: Path, tmp_path: Path
) -> None:
    store = copy_of(scored_pairs, tmp_path / "out")
    assert read_commits(store) == read_commits(Store(str(scored_pairs)))
    assert verify_output(store.uri)[1] == []


def test_the_manifest_of_many_parts_names_the_checkpoint_instead(
    scored_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = copy_of(scored_pairs, tmp_path / "out")
    before = store.read_json(SUCCESS) or {}
    scores = open_scores([store.uri])
    monkeypatch.setattr(commits, "MOST_PARTS", 1)
    log = finish(store)
    manifest = store.read_json(SUCCESS) or {}
    assert (manifest["parts"], manifest["parts_in"]) == (None, CHECKPOINT)
    assert (manifest["totals"], manifest["num_parts"]) == (before["totals"], len(before["parts"]))
    sql = f"SELECT unnest(parts).path FROM '{store.path(CHECKPOINT)}'"
    listed = duckdb.connect().execute(sql).fetchall()
    assert sorted(path for (path,) in listed) == sorted(part["path"] for part in before["parts"])
    assert verify_output(store.uri)[1] == []
    assert open_scores([store.uri]) == scores
    store.delete(CHECKPOINT)  # the records have them as well
    assert open_scores([store.uri]) == scores
    assert commits.find_manifest(store) is not None
    resume.drop(store, [min(log.units)])
    with pytest.raises(ConfigError, match="does not list the same parts as the commits"):
        open_scores([store.uri])
    assert any(SUCCESS in fault for fault in verify_output(store.uri)[1])


def test_a_row_has_the_names_and_values_of_its_record(finished: Store) -> None:
    row = pq.read_table(finished.path(CHECKPOINT)).to_pylist(maps_as_pydicts="strict")[0]
    record = json.loads(finished.read(f"{COMMITS}/{row['unit']}.json"))
    assert {name: row[name] for name in record if name not in ("parts", "content")} == {
        name: value for name, value in record.items() if name not in ("parts", "content")
    }
    assert [{name: part[name] for name in ("path", "rows", "bytes", "digest")} for part in row["parts"]] == (
        record["parts"]
    )


def test_on_s3_finishing_reads_the_new_records_and_the_checkpoint_only(s3: str, faulty: FaultProxy) -> None:
    store = Store(f"{s3}/out")
    units = [f"{n:032x}" for n in range(12)]
    for unit in units[:10]:
        commit(store, commit_record(unit, source=f"/in/{unit}.jsonl"))
    finish(store)
    for unit in units[10:]:
        commit(store, commit_record(unit, source=f"/in/{unit}.jsonl"))
    faulty.seen.clear()
    assert finish(store).totals().units == 12
    assert faulty.seen["get"] <= 2 + 2  # new records; the checkpoint and the run, of which there is none
    assert faulty.seen["list"] <= 2
    assert read_log(store).read == []
