"""What is begun can be finished: units left to do, shards that changed or are gone, and what is dropped of them."""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armo_ray.errors import ConfigError
from armo_ray.score.job import prepare
from armo_ray.storage import commits, resume
from armo_ray.storage.resume import list_standing, to_do
from armo_ray.storage.shards import Shard, find_shards
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span, cut, unit_id
from armo_ray.verify.output import verify_output
from tests.support.local import config_for, score_locally, scores_of
from tests.support.runs import commits_of

F = "fingerprint"
PAIRS = [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": "no"} for i in range(12)]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


Writer = Callable[[Path, list[dict[str, Any]]], None]
FORMATS = pytest.mark.parametrize(
    ("name", "write"),
    [("a.parquet", write_parquet), ("a.jsonl", write_jsonl), ("a.jsonl.gz", write_jsonl)],
    ids=["parquet", "jsonl", "gz"],
)


def score_some(model: Path, inputs: Any, output: Path, units: int, **options: Any) -> list[Span]:
    """Commit so many units, as a run that is killed then; returns the spans of the whole input."""
    config = config_for(model, inputs, output, unit_rows=4, **options)
    job, spans = prepare(config)
    score_locally(model, inputs, output, unit_rows=4, **options)
    keep_units(Store(job.output), units)
    return spans


def keep_units(store: Store, units: int) -> None:
    """Drop all but so many units of a complete output."""
    store.delete(commits.SUCCESS)
    resume.drop(store, sorted(commits.list_commits(store))[units:])
    assert len(commits.list_commits(store)) == units


@FORMATS
def test_what_is_left_is_told_again_and_again_from_the_same_spans(
    name: str, write: Writer, tiny_model: Path, tmp_path: Path
) -> None:
    """A run looks at its commits when it begins and after every pass."""
    write(tmp_path / name, PAIRS)
    config = config_for(tiny_model, tmp_path / name, tmp_path / "out", unit_rows=4)
    job, spans = prepare(config)
    store = Store(job.output)
    for units in (0, 3, 5, 6):
        score_locally(tiny_model, tmp_path / name, tmp_path / "out", unit_rows=4)
        assert verify_output(str(tmp_path / "out"))[1] == []
        assert len(scores_of(tmp_path / "out")) == 24
        keep_units(store, units)
        for _ in range(2):
            standing = list_standing(store, spans, job.fingerprint)
            assert standing.changed == {}
            assert bool(standing.left) == (units < 6)


def test_committed_units_are_left_out(tmp_path: Path) -> None:
    for name in "ab":
        pq.write_table(pa.table({"c": ["x"] * 300}), tmp_path / f"{name}.parquet", row_group_size=100)
    a, b = cut(find_shards([str(tmp_path)]), F, 100, {})
    store = Store(str(tmp_path / "out"))
    assert to_do(store, [a, b], F) == [a, b]
    for unit in (a.units[1].id, *(unit.id for unit in b.units), "0" * 32):  # and one of a shard not asked for
        store.write(f"{commits.COMMITS}/{unit}.json", b"{}")
    assert to_do(store, [a, b], F) == [replace(a, units=(a.units[0], a.units[2]))]
    assert to_do(store, [a, b], F) == [replace(a, units=(a.units[0], a.units[2]))]


@settings(max_examples=50)
@given(done=st.sets(st.integers(0, 300), max_size=100))
def test_the_committed_runs_of_a_jsonl_shard_are_found_by_their_ids(done: set[int]) -> None:
    shard = Shard("/in/a.jsonl", 10, "10-1", ())
    own = {unit_id(shard, F, str(n)): n for n in done}
    assert resume._ordinals(shard, F, set(own)) == {n: unit for unit, n in own.items()}


@FORMATS
def test_a_shard_that_changed_is_refused_by_name_and_scored_anew_by_redo(
    name: str, write: Writer, tiny_model: Path, tmp_path: Path
) -> None:
    shard, out = tmp_path / "in" / name, tmp_path / "out"
    shard.parent.mkdir()
    write(shard, PAIRS)
    write_jsonl(shard.parent / "other.jsonl", PAIRS[:2])
    score_some(tiny_model, shard.parent, out, 3)
    write(shard, PAIRS[:5])
    before = sorted(path for path in out.rglob("*"))
    with pytest.raises(ConfigError, match=f"{shard} changed after it was scored .* --redo {shard}"):
        prepare(config_for(tiny_model, shard.parent, out, unit_rows=4))
    assert sorted(path for path in out.rglob("*")) == before
    for _ in range(2):  # once it is scored anew, there is nothing to drop
        score_locally(tiny_model, shard.parent, out, unit_rows=4, redo=[str(shard)])
        assert verify_output(str(out))[1] == []
        expected = tmp_path / "expected"
        score_locally(tiny_model, shard.parent, expected, unit_rows=4)
        assert scores_of(out) == scores_of(expected)


@FORMATS
def test_a_half_committed_shard_that_is_gone_is_told_and_dropped_by_forget(
    name: str, write: Writer, tiny_model: Path, tmp_path: Path
) -> None:
    shard, out = tmp_path / "in" / name, tmp_path / "out"
    shard.parent.mkdir()
    write(shard, PAIRS)
    score_some(tiny_model, shard.parent, out, 3)
    shard.unlink()
    write_jsonl(shard.parent / "later.jsonl", PAIRS[:2])
    with pytest.raises(RuntimeError, match=f"the first is {shard}. .* --forget {shard}"):
        score_locally(tiny_model, shard.parent, out, unit_rows=4)
    score_locally(tiny_model, shard.parent, out, unit_rows=4, forget=[f"{tmp_path}/*/{name}"])
    assert verify_output(str(out))[1] == []
    assert len(scores_of(out)) == 4


def test_redo_and_forget_of_the_wrong_shard_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", PAIRS)
    given = (tiny_model, tmp_path / "a.jsonl", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"redo: /gone.jsonl is not in the input; .* use --forget"):
        prepare(config_for(*given, redo="/gone.jsonl"))
    with pytest.raises(ConfigError, match=r"forget: .*a.jsonl is in the input; .* use --redo"):
        prepare(config_for(*given, forget=str(tmp_path / "*.jsonl")))


def test_a_shard_that_is_repaired_loses_its_reject_only_when_work_begins(
    tiny_model: Path, tmp_path: Path
) -> None:
    shard, out = tmp_path / "a.parquet", tmp_path / "out"
    shard.write_bytes(b"PAR1 damaged")
    write_jsonl(tmp_path / "b.jsonl", PAIRS[:2])
    inputs = [shard, tmp_path / "b.jsonl"]
    score_locally(tiny_model, inputs, out, unit_rows=4)
    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write_parquet(shard, PAIRS)
    write_jsonl(tmp_path / "b.jsonl", PAIRS[:3])
    with pytest.raises(ConfigError, match=r"b.jsonl changed"):
        score_locally(tiny_model, inputs, out, unit_rows=4)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == whole
    manifest = score_locally(tiny_model, inputs, out, unit_rows=4, redo=[str(tmp_path / "b.jsonl")])
    assert manifest["totals"]["rejected"] == {}
    assert manifest["totals"]["scored"] == 30
    assert verify_output(str(out))[1] == []


def test_a_relative_path_is_absolute_from_the_command_line_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_for("model", "in/*.jsonl", "out")
    assert config.input == (f"{tmp_path}/in/*.jsonl",)
    assert config.output == f"{tmp_path}/out"
    assert config_for("model", "s3://b/in", "~/out").output == os.path.expanduser("~/out")


def test_a_relative_output_of_a_submitted_job_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    assert config_for("model", "in", "s3://b/out").input == (f"{unpacked}/in",)
    with pytest.raises(ValueError, match="a relative path in a submitted job"):
        config_for("model", "in", "out")
    shutil.rmtree(unpacked)


@FORMATS
@pytest.mark.parametrize("units", [3, 6])
def test_a_shard_that_is_copied_back_goes_on_where_it_was(
    name: str, write: Writer, units: int, tiny_model: Path, tmp_path: Path
) -> None:
    """Its modification time is another; its bytes are not."""
    shard, out = tmp_path / name, tmp_path / "out"
    write(shard, PAIRS)
    score_some(tiny_model, shard, out, units)
    before = commits_of(out)
    shard.with_suffix(".copy").write_bytes(shard.read_bytes())
    shard.with_suffix(".copy").replace(shard)
    os.utime(shard, (1, 1))
    score_locally(tiny_model, shard, out, unit_rows=4)
    assert before.items() <= commits_of(out).items()
    assert len(scores_of(out)) == 24
    assert verify_output(str(out))[1] == []
