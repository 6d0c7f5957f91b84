"""An output belongs to one run, each unit is committed once, and what is committed is never done again."""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.errors import ConfigError
from armo_ray.storage.commits import (
    COMMITS,
    RUN,
    SUCCESS,
    commit,
    finish,
    list_commits,
    open_run,
    read_commits,
)
from armo_ray.storage.parts import write_scores
from armo_ray.storage.readers import BadRow, Row, UnitRows, read_units
from armo_ray.storage.records import Timing, Totals
from armo_ray.storage.resume import to_do
from armo_ray.storage.shards import find_shards
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span, cut
from tests.support.commit_records import commit_record

F = "fingerprint"
U1, U2, U3 = ("0" * 31 + digit for digit in "123")
IDENTITY = {"model_fingerprint": "abc", "dtype": "bfloat16", "keep": {"id": "id"}, "max_length": 4096}


def finished(store: Store) -> dict[str, Any]:
    """The manifest as it was written."""
    finish(store)
    return store.read_json(SUCCESS) or {}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def count(row: Row) -> int:
    return 1


def commit_unit(store: Store, done: UnitRows, source: str) -> None:
    """Write and commit a unit, every row of it scored."""
    table = pa.table({"row": [number for number, row in done.rows if not isinstance(row, BadRow)]})
    n = table.num_rows
    parts = tuple(write_scores(store, done.unit.id, table, [], []))
    first, last = done.unit.first_row, done.unit.last
    changes = {
        "source": source,
        "first_row": first,
        "num_rows": n,
        "ordinal": done.unit.ordinal,
        "last": last,
        "candidates": n,
        "scored": n,
    }
    commit(store, commit_record(done.unit.id, **changes, rejected={}, parts=parts))


def run(store: Store, spans: list[Span], at_most: int | None = None) -> list[str]:
    """Do what is left to do, or so many units of it; returns the ids of the units that were done."""
    done: list[str] = []
    for span in to_do(store, spans, F):
        for unit in read_units(span, ["i"], count, 10, F):
            if len(done) == at_most:
                return done
            commit_unit(store, unit, span.shard.uri)
            done.append(unit.unit.id)
    return done


@pytest.fixture
def spans(tmp_path: Path) -> list[Span]:
    """A Parquet shard of 4 units, JSONL shards of 4 units, 1 unit and one without rows."""
    (tmp_path / "in").mkdir()
    rows = [{"i": i} for i in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "a.parquet", row_group_size=10)
    for name, n in [("b", 40), ("c", 3), ("d", 0)]:
        (tmp_path / "in" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:n]))
    return cut(find_shards([str(tmp_path / "in")]), F, 10, {"i": False})


def test_a_run_is_opened_again_with_what_was_written_first(store: Store) -> None:
    first = open_run(store, IDENTITY, {"versions": {"ray": "1"}})
    assert (first.identity, first.versions) == (IDENTITY, {"ray": "1"})
    assert open_run(store, IDENTITY, {"versions": {"ray": "2"}}) == first
    assert first.to_dict() == store.read_json(RUN)


def test_an_identity_is_the_same_whichever_sequence_and_order_it_is_given_in(store: Store) -> None:
    open_run(store, {"by": ("a", "b"), "dtype": "float32"}, {})
    again = open_run(store, {"dtype": "float32", "by": ["a", "b"]}, {})
    assert again.identity == {"by": ["a", "b"], "dtype": "float32"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        pytest.param({"dtype": "float32"}, "dtype was 'bfloat16', now 'float32'", id="value"),
        pytest.param({"keep": {}}, "keep.id was 'id', now None", id="nested"),
        pytest.param({"unit_rows": 5}, "unit_rows was None, now 5", id="more"),
        pytest.param({"dtype": "x", "max_length": 1}, "dtype .*; max_length was 4096, now 1", id="two"),
    ],
)
def test_another_identity_is_refused_and_the_difference_named(store: Store, changes: Any, told: str) -> None:
    before = open_run(store, IDENTITY, {})
    with pytest.raises(ConfigError, match=told) as caught:
        open_run(store, IDENTITY | changes, {})
    assert store.uri in str(caught.value)
    assert "model_fingerprint" not in str(caught.value)
    assert store.read_json(RUN) == before.to_dict()


@pytest.mark.parametrize("name", ["file", "file/out", "file/deep/out"])
def test_an_output_that_cannot_be_written_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(ConfigError, match=f"output {tmp_path}/{name}: cannot be written"):
        open_run(Store(str(tmp_path / name)), IDENTITY, {})
    assert (tmp_path / "file").read_text() == "a file"


def test_an_output_with_commits_but_without_its_run_is_refused_every_time(store: Store) -> None:
    commit(store, commit_record(U1))
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"{store.uri}: has commits but no {RUN}"):
            open_run(store, IDENTITY, {})
    assert store.read_json(RUN) is None


def test_of_runs_that_begin_one_output_together_all_find_the_same(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: open_run(store, IDENTITY, {"n": n}), range(8)))
    assert all(content == found[0] for content in found)


def test_a_unit_committed_again_alike_keeps_its_first_record(store: Store) -> None:
    commit(store, commit_record(U1, timing=Timing({"read": 0.1}, 1.5, 0.5)))
    before = store.read(f"{COMMITS}/{U1}.json")
    commit(store, commit_record(U1, timing=Timing({"read": 9.9}, 1.5, 0.5)))  # another worker took longer
    assert store.read(f"{COMMITS}/{U1}.json") == before
    assert json.loads(before)["seconds"] == {"read": 0.1}


def test_of_two_writers_of_other_bytes_the_record_tells_those_that_are_there(store: Store) -> None:
    """On another device the same rows may round to other bits."""
    unit = "0" * 31 + "9"
    first, second = (
        tuple(write_scores(store, unit, pa.table({"score": [x] * 8}), [], [])) for x in (0.1, 0.2)
    )
    commit(store, commit_record(unit, parts=first))
    commit(store, commit_record(unit, parts=second))
    (found,) = read_commits(store)
    assert first != second == found.parts


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"scored": 7}, id="scored"),
        pytest.param({"rejected": {"poison": 2}}, id="rejected"),
        pytest.param({"candidates": 11}, id="candidates"),
        pytest.param({"num_rows": 6}, id="num_rows"),
        pytest.param({"first_row": 1}, id="first_row"),
        pytest.param({"source": "/in/b.jsonl"}, id="source"),
    ],
)
def test_a_unit_committed_again_with_other_counts_is_an_error(store: Store, changes: dict[str, Any]) -> None:
    commit(store, commit_record(U1))
    (key,) = changes
    with pytest.raises(RuntimeError, match=f"{U1}.json: another run committed {key}="):
        commit(store, commit_record(U1, **changes))
    assert (store.read_json(f"{COMMITS}/{U1}.json") or {}).items() >= commit_record(U1).to_dict().items()


def create_all(uri: str, names: list[str], writer: int) -> list[str]:
    """The names that this writer created."""
    store = Store(uri)
    return [name for name in names if store.create(name, f"{writer}".encode() * 1000)]


def test_of_several_processes_that_commit_a_unit_exactly_one_wins(store: Store) -> None:
    names = [f"{COMMITS}/{n}.json" for n in range(100)]
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        won = list(pool.map(create_all, [store.uri] * 3, [names] * 3, range(3)))
    assert sorted(name for names_won in won for name in names_won) == sorted(names)
    for writer, names_won in enumerate(won):
        assert {store.read(name) for name in names_won} <= {f"{writer}".encode() * 1000}


def test_threads_that_commit_alike_agree_and_one_that_does_not_fails(store: Store) -> None:
    with ThreadPoolExecutor(12) as pool:
        list(
            pool.map(
                lambda n: commit(store, commit_record(U1, timing=Timing({"read": n}, 1.5, 0.5))), range(12)
            )
        )
        outcomes = [pool.submit(commit, store, commit_record(U2, scored=n)) for n in range(6)]
    failed = [error for error in (outcome.exception() for outcome in outcomes) if error is not None]
    assert [type(error) for error in failed] == [RuntimeError] * 5
    assert list_commits(store) == {U1, U2}


def test_records_are_read_in_the_order_of_the_input(store: Store) -> None:
    for unit, source, first in [(U1, "/b.jsonl", 0), (U2, "/a.jsonl", 10), (U3, "/a.jsonl", 9)]:
        commit(store, commit_record(unit, source=source, first_row=first))
    assert list_commits(store) == {U1, U2, U3}
    assert [r.unit for r in read_commits(store)] == [U3, U2, U1]


def test_files_that_are_no_records_are_no_commits(store: Store) -> None:
    commit(store, commit_record(U1))
    store.write(f"{COMMITS}/note.txt", b"")
    store.write(f"{COMMITS}/.{U2}.json.0123", b"")  # what a killed writer leaves
    assert list_commits(store) == {U1}


def test_nothing_is_left_to_do_when_all_units_are_committed(store: Store, spans: list[Span]) -> None:
    done = run(store, spans)
    assert len(done) == len(set(done)) == 4 + 4 + 1 + 1
    assert to_do(store, spans, F) == []
    assert list_commits(store) == set(done)


@pytest.mark.parametrize("stop", range(0, 10, 3))
def test_a_run_that_stopped_anywhere_goes_on_with_the_units_that_are_missing(
    store: Store, spans: list[Span], stop: int
) -> None:
    before = run(store, spans, at_most=stop)
    after = run(store, spans)
    assert (len(before), len(after)) == (stop, 10 - stop)
    assert list_commits(store) == {*before, *after}
    assert to_do(store, spans, F) == []
    rows = sorted((r.source, r.first_row, r.num_rows) for r in read_commits(store))
    assert [n for _, _, n in rows] == [10] * 8 + [3, 0]


@pytest.mark.parametrize(
    ("committed", "left"),
    [
        pytest.param([0], True, id="the-first"),
        pytest.param([0, 1, 2], True, id="all-but-the-last"),
        pytest.param([3], True, id="only-the-last"),
        pytest.param([0, 1, 3], True, id="a-hole"),
        pytest.param([0, 1, 2, 3], False, id="all"),
    ],
)
def test_a_jsonl_shard_is_done_when_every_run_up_to_the_last_is(
    store: Store, spans: list[Span], committed: list[int], left: bool
) -> None:
    span = spans[1]
    units = list(read_units(span, [], count, 10, F))
    for ordinal in committed:
        commit_unit(store, units[ordinal], span.shard.uri)
    assert to_do(store, [span], F) == ([replace(span, done=frozenset(committed))] if left else [])


def test_new_shards_are_the_only_work_of_the_next_run(
    store: Store, spans: list[Span], tmp_path: Path
) -> None:
    run(store, spans)
    (tmp_path / "in" / "aa.jsonl").write_text('{"i": 1}\n')
    later = cut(find_shards([str(tmp_path / "in")]), F, 10, {"i": False})
    assert [span.shard.uri for span in to_do(store, later, F)] == [str(tmp_path / "in" / "aa.jsonl")]
    assert len(run(store, later)) == 1


def test_the_manifest_has_totals_and_parts_of_the_commits_and_of_nothing_else(store: Store) -> None:
    open_run(store, IDENTITY, {})
    orphan = pa.table({"row": [1, 2, 3]})
    write_scores(store, "0" * 32, orphan, [], [])  # a task that was killed before its commit
    commit(store, commit_record(U2, source="/in/b.jsonl", rejected={"too_long": 1, "poison": 1}))
    commit(store, commit_record(U1))
    manifest = finished(store)
    assert manifest == store.read_json(SUCCESS)
    assert manifest["totals"] == {
        "units": 2,
        "candidates": 20,
        "scored": 16,
        "num_tokens": 200,
        "computed_tokens": 160,
        "shards": 2,
        "rejected": {"too_long": 3, "poison": 1},
    }
    parts = (*commit_record(U1).parts, *commit_record(U2).parts)
    assert manifest["parts"] == [part.to_dict() for part in parts]


def test_a_part_without_its_commit_is_written_again_under_its_name(store: Store, spans: list[Span]) -> None:
    span = spans[0]
    unit = next(read_units(span, ["i"], count, 10, F)).unit
    write_scores(store, unit.id, pa.table({"row": [-1]}), [], [])
    run(store, spans)
    parts = [part for part in finished(store)["parts"] if unit.id in part["path"]]
    assert [part["rows"] for part in parts] == [10]
    assert pq.read_table(store.path(parts[0]["path"]))["row"].to_pylist() == list(range(10))


def test_an_output_without_commits_has_an_empty_manifest(store: Store) -> None:
    manifest = finished(store)
    assert (manifest["totals"]["units"], manifest["totals"]["rejected"], manifest["parts"]) == (0, {}, [])
    assert Totals.of([]).to_dict() == manifest["totals"]
