"""What is made of an output has one part where the output has many: consecutive units of a shard become one."""

import json
import math
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.cli.main import main
from armo_ray.curate import derived_output
from armo_ray.outputs.schema import METADATA_KEY, footer
from armo_ray.storage import commits
from armo_ray.storage.records import CommitRecord
from armo_ray.storage.store import Store
from armo_ray.verify.output import verify_output
from tests.support.local import rows_as_written, rows_of, score_locally
from tests.support.paths import SAMPLE
from tests.support.synthetic_outputs import commit_again

pytest_plugins = ["tests.support.s3_server"]

FILTER = ["filter", "--where", "score >= q0.4"]
REWEIGH = ["reweigh", "--mask", "code_style"]


@pytest.fixture(scope="module", params=["parquet", "jsonl"])
def scored(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two shards of several units; an empty response in each."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "in").mkdir()
    rows = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()]
    for name, some in (("a", rows[:28]), ("b", rows[28:45])):
        some[12] = {**some[12], "rejected": ""}
        if request.param == "parquet":
            pq.write_table(pa.Table.from_pylist(some), folder / f"in/{name}.parquet", row_group_size=5)
        else:
            lines = [json.dumps(row) + "\n" * (1 + i % 3) for i, row in enumerate(some)]  # with blank lines
            (folder / f"in/{name}.jsonl").write_text("".join(lines))
    score_locally(tiny_model, folder / "in", folder / "out", unit_rows=5, keep=["id"], partition_by=["role"])
    return folder / "out"


def run(command: list[str], scores: Path, output: Path, *more: str) -> int:
    name, *options = command
    return main([name, str(scores), "--output", str(output), *options, *more])


def records_of(output: Path) -> list[CommitRecord]:
    return commits.read_commits(Store(str(output)))


def units_by_shard(output: Path) -> list[int]:
    """The number of units of each shard."""
    return list(Counter(record.source for record in records_of(output)).values())


def content(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "score"} for row in rows]


def test_a_filter_makes_one_unit_of_those_of_a_shard(scored: Path, tmp_path: Path) -> None:
    assert run(FILTER, scored, tmp_path / "out") == 0
    rows = rows_of(scored)
    threshold = sorted(row["score"] for row in rows)[math.ceil(0.4 * len(rows)) - 1]
    assert rows_of(tmp_path / "out") == [row for row in rows if row["score"] >= threshold]
    before, records = records_of(scored), records_of(tmp_path / "out")
    assert [record.num_units for record in records] == units_by_shard(scored)
    assert [unit.unit for record in records for unit in record.merged] == [record.unit for record in before]
    assert sum(record.num_rows for record in records) == sum(record.num_rows for record in before) == 45
    folders = {part.path.rpartition("/")[0] for record in before for part in record.parts_in("scores")}
    assert sum(len(record.parts) for record in records) <= 2 * len(folders)
    assert verify_output(str(tmp_path / "out"))[1] == []


def test_reweighing_keeps_rows_rejects_and_their_order(scored: Path, tmp_path: Path) -> None:
    assert run(REWEIGH, scored, tmp_path / "out") == 0
    assert content(rows_of(tmp_path / "out")) == content(rows_of(scored))
    assert rows_of(tmp_path / "out", "rejects") == rows_of(scored, "rejects") != []
    for role in ("chosen", "rejected"):
        before, after = (
            [row for row in content(rows_as_written(output)) if row["role"] == role]
            for output in (scored, tmp_path / "out")
        )
        assert before == after != []
    assert [record.num_units for record in records_of(tmp_path / "out")] == units_by_shard(scored)
    assert verify_output(str(tmp_path / "out"))[1] == []


def test_the_comparison_of_reweighed_scores_is_that_of_the_rows(scored: Path, tmp_path: Path) -> None:
    assert run(["reweigh", "--factor", "code_style=1"], scored, tmp_path / "same") == 0
    compared = json.loads((tmp_path / "same/comparison.json").read_text())
    assert compared["candidates"] == len(rows_of(scored))
    assert (compared["pair_flips"], compared["top_changes"]) == (0, 0)
    assert compared["largest_difference"] < 1e-5


@pytest.mark.parametrize("command", [FILTER, REWEIGH], ids=["filter", "reweigh"])
def test_an_output_of_parts_of_any_size_has_the_same_rows(
    command: list[str], scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(command, scored, tmp_path / "whole") == 0
    for size in (1, 8_000):
        monkeypatch.setattr(derived_output, "_PART_BYTES", size)
        assert run(command, scored, tmp_path / str(size)) == 0
        assert 2 < len(records_of(tmp_path / str(size))) <= sum(units_by_shard(scored))
        assert rows_of(tmp_path / str(size)) == rows_of(tmp_path / "whole")
        assert verify_output(str(tmp_path / str(size)))[1] == []


def test_a_command_that_was_killed_amid_a_shard_goes_on_with_other_parts(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, commit = iter([True] * 3), commits.commit

    def killed(*arguments: Any) -> None:
        if not next(left, False):
            raise KeyboardInterrupt
        commit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(commits, "commit", killed)
        patch.setattr(derived_output, "_PART_BYTES", 1)
        assert run(REWEIGH, scored, tmp_path / "out", "--append") == 1
    assert len(records_of(tmp_path / "out")) == 3
    last = records_of(scored)[-1].parts_in("scores")[0].path  # as if another thread had got further
    (tmp_path / "out" / last).parent.mkdir(exist_ok=True)
    shutil.copy(scored / last, tmp_path / "out" / last)
    assert run(REWEIGH, scored, tmp_path / "out", "--append") == 0
    assert run(REWEIGH, scored, tmp_path / "one") == 0
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "one")
    assert verify_output(str(tmp_path / "out"))[1] == []


def test_what_is_made_of_merged_units_is_made_of_all_their_rows(scored: Path, tmp_path: Path) -> None:
    assert run(REWEIGH, scored, tmp_path / "a") == 0
    assert run(["filter", "--where", "score > -99"], tmp_path / "a", tmp_path / "b", "--append") == 0
    assert rows_of(tmp_path / "b") == rows_of(tmp_path / "a")
    ranges = [[unit.unit for unit in record.merged] for record in records_of(tmp_path / "b")]
    assert ranges == [[unit.unit for unit in record.merged] for record in records_of(tmp_path / "a")]
    assert run(["filter", "--where", "score > -99"], tmp_path / "a", tmp_path / "b", "--append") == 0
    assert verify_output(str(tmp_path / "b"))[1] == []


def test_an_output_is_not_counted_twice_with_one_made_of_it(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(derived_output, "_PART_BYTES", 1)
        assert run(["filter", "--where", "source_row > 7"], scored, tmp_path / "fine") == 0
    assert run(["filter", "--where", "source_row > 7"], scored, tmp_path / "coarse") == 0
    command = ["filter", str(tmp_path / "coarse"), str(tmp_path / "fine"), "--where", "score > -99"]
    assert main([*command, "--output", str(tmp_path / "both")]) == 2
    assert "is also in another of the outputs" in capsys.readouterr().err


def test_text_is_read_of_shards_with_other_times_but_not_of_changed_ones(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = tmp_path / "in.jsonl"
    lines = SAMPLE.read_text("utf-8").splitlines(keepends=True)[:12]
    shard.write_text("".join(lines))
    score_locally(tiny_model, shard, tmp_path / "scores", unit_rows=4)
    assert run(FILTER, tmp_path / "scores", tmp_path / "kept") == 0
    os.utime(shard, ns=(1, 1))
    more = ["filter", str(tmp_path / "kept"), "--where", "score > -99", "--text", "--output"]
    assert main([*more, str(tmp_path / "text")]) == 0
    assert len(rows_of(tmp_path / "text")) == len(rows_of(tmp_path / "kept"))
    shard.write_text("".join([*lines[:-1], lines[-1].replace("e", "a")]))
    assert main([*more, str(tmp_path / "changed")]) == 2
    assert "the shard changed" in capsys.readouterr().err


def test_units_with_other_metadata_are_not_merged(scored: Path, tmp_path: Path) -> None:
    unit = records_of(scored)[2]
    copy = Path(shutil.copytree(scored, tmp_path / "copy"))
    for part in unit.parts_in("scores"):
        table = pq.read_table(copy / part.path, partitioning=None)
        made = json.dumps({**footer(table.schema), "model_revision": "later"})
        pq.write_table(
            table.replace_schema_metadata({**table.schema.metadata, METADATA_KEY: made}), copy / part.path
        )
    commit_again(copy)
    assert run(["filter", "--where", "score > -99"], copy, tmp_path / "out") == 0
    first, second = units_by_shard(scored)
    assert [r.num_units for r in records_of(tmp_path / "out")] == [2, 1, first - 3, second]
    assert rows_of(tmp_path / "out") == rows_of(scored)


def test_units_of_other_directories_are_not_merged_so_that_a_partition_is_found(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()][:24]
    lines = [json.dumps({**row, "subset": "ab"[i // 12]}) + "\n" for i, row in enumerate(rows)]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    options = {"unit_rows": 4, "keep": ["id"], "partition_by": ["subset"]}
    score_locally(tiny_model, tmp_path / "in.jsonl", tmp_path / "scores", **options)
    assert run(["filter", "--where", "score > -99"], tmp_path / "scores", tmp_path / "kept") == 0
    assert len(records_of(tmp_path / "kept")) == 2
    assert main(["report", str(tmp_path / "kept"), "--partition", "subset=a"]) == 0
    for source in ("scores", "kept"):
        command = ["filter", "--where", "score > -99", "--partition", "subset=b"]
        assert run(command, tmp_path / source, tmp_path / f"b of {source}") == 0
        assert rows_of(tmp_path / f"b of {source}") == [
            row for row in rows_of(tmp_path / "scores") if row["source_row"] >= 12
        ]
        assert verify_output(str(tmp_path / f"b of {source}"))[1] == []


def test_a_partition_that_cuts_units_and_shards_has_its_candidates_alone(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [row for row in rows_of(scored) if row["candidate"] == 0]
    there = ["--partition", "role=chosen"]
    for name, command in (("kept", ["filter", "--where", "score > -99"]), ("new", REWEIGH)):
        assert run(command, scored, tmp_path / name, *there) == 0
        assert content(rows_of(tmp_path / name)) == content(chosen)
        assert rows_of(tmp_path / name, "rejects") == []  # it is not known which partition they belong to
        assert verify_output(str(tmp_path / name))[1] == []
        assert run(command, scored, tmp_path / "growing", *there, "--append") == 2
        assert "--append can add a shard only as a whole" in capsys.readouterr().err
    shutil.copytree(scored, tmp_path / "other")
    ensemble = ["reweigh", str(scored), str(tmp_path / "other"), "--ensemble", "mean"]
    assert main([*ensemble, "--output", str(tmp_path / "both"), *there]) == 0
    assert [row["row_id"] for row in rows_of(tmp_path / "both")] == [row["row_id"] for row in chosen]
    assert verify_output(str(tmp_path / "both"))[1] == []


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_unit_of_rejects_alone_is_where_the_candidates_of_its_shard_are(
    form: str, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    rows = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()][:24]
    for day, some in (("a", rows[:12]), ("b", rows[12:])):
        some = [{**row, "day": day} for row in some]
        some[4:8] = [{**row, "chosen": "", "rejected": ""} for row in some[4:8]]
        if form == "parquet":
            pq.write_table(pa.Table.from_pylist(some), tmp_path / f"in/{day}.parquet", row_group_size=4)
        else:
            (tmp_path / f"in/{day}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    options = {"unit_rows": 4, "keep": ["id"], "partition_by": ["day"]}
    score_locally(tiny_model, tmp_path / "in", tmp_path / "scores", **options)
    assert min(record.scored for record in records_of(tmp_path / "scores")) == 0
    for name in ("one", "growing"):
        append = ["--append"] if name == "growing" else []
        for day in ("a", "b"):
            out = tmp_path / (name if append else f"{name}-{day}")
            assert run(REWEIGH, tmp_path / "scores", out, "--partition", f"day={day}", *append) == 0
            assert verify_output(str(out))[1] == []
    for folder in ("scores", "rejects"):
        parts = [row for day in "ab" for row in rows_of(tmp_path / f"one-{day}", folder)]
        assert content(parts) == content(rows_of(tmp_path / "scores", folder))
        assert rows_of(tmp_path / "growing", folder) == parts


def test_an_ensemble_of_a_partition_leaves_out_what_a_member_lacks(scored: Path, tmp_path: Path) -> None:
    shard = records_of(scored)[0].source
    lacking = ["filter", "--where", f"source <> '{shard}' or candidate <> 0"]
    assert run(lacking, scored, tmp_path / "other") == 0
    ensemble = ["reweigh", str(scored), str(tmp_path / "other"), "--ensemble", "mean"]
    assert main([*ensemble, "--output", str(tmp_path / "both"), "--partition", "role=chosen"]) == 0
    there = [row["row_id"] for row in rows_of(tmp_path / "other") if row["candidate"] == 0]
    assert [row["row_id"] for row in rows_of(tmp_path / "both")] == there != []


def test_an_ensemble_of_merged_units_has_all_rows_however_many_lines_are_blank(
    tiny_model: Path, tmp_path: Path
) -> None:
    lines = SAMPLE.read_text("utf-8").splitlines()[:20]
    (tmp_path / "in.jsonl").write_text("".join(line + "\n\n\n" for line in lines))
    for name, rows in (("one", 4), ("two", 6)):
        score_locally(tiny_model, tmp_path / "in.jsonl", tmp_path / name, unit_rows=rows)
    assert run(["filter", "--where", "score > -99"], tmp_path / "one", tmp_path / "kept") == 0
    for first, second in (("kept", "two"), ("two", "kept"), ("one", "two")):
        command = ["reweigh", str(tmp_path / first), str(tmp_path / second), "--ensemble", "mean"]
        assert main([*command, "--output", str(tmp_path / f"{first}-{second}")]) == 0
        assert len(rows_of(tmp_path / f"{first}-{second}")) == 40


def test_rejects_count_to_the_size_of_a_unit(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": "p" * 10_000, "chosen": "", "rejected": ""}] * 40
    good = {"prompt": "p", "chosen": "a b", "rejected": "c"}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [good, *rows]))
    score_locally(tiny_model, tmp_path / "in.jsonl", tmp_path / "scores", unit_rows=4)
    monkeypatch.setattr(derived_output, "_PART_BYTES", 100_000)
    assert run(REWEIGH, tmp_path / "scores", tmp_path / "out") == 0
    assert max(sum(record.rejected.values()) for record in records_of(tmp_path / "out")) <= 24
    assert rows_of(tmp_path / "out", "rejects") == rows_of(tmp_path / "scores", "rejects")
    assert verify_output(str(tmp_path / "out"))[1] == []


def test_units_are_merged_from_s3_to_s3_as_on_a_disk(scored: Path, tmp_path: Path, s3: str) -> None:
    fs = Store(s3).fs
    fs.put(str(scored), f"{Store(s3).root}/scores", recursive=True)
    for name, command in (("filter", FILTER), ("reweigh", REWEIGH)):
        assert run(command, scored, tmp_path / name) == 0
        _, *options = command
        assert main([name, f"{s3}/scores", "--output", f"{s3}/{name}", *options]) == 0
        assert rows_of(f"{s3}/{name}") == rows_of(tmp_path / name)
        assert verify_output(f"{s3}/{name}")[1] == []
