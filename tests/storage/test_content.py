"""A shard that is copied back byte for byte, with another modification time, is the shard that was scored."""

import gzip
import json
import logging
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.explain.find import find
from armo_ray.explain.tokens import trace
from armo_ray.score.config import ScoreConfig
from armo_ray.score.job import ModelJob, prepare
from armo_ray.score.stages import Scorer, read_and_tokenize, write_and_commit
from armo_ray.storage import commits, resume
from armo_ray.storage.content import settled
from armo_ray.storage.json_files import CHECKSUM
from armo_ray.storage.shards import Shard, find_shards
from armo_ray.storage.store import Store
from armo_ray.verify.output import verify_output
from tests.storage.test_readers import zstd
from tests.support.local import config_for, score_locally, scores_of

KINDS = ["parquet", "jsonl", "jsonl.gz", "jsonl.zst"]
ROWS: list[dict[str, Any]] = [
    {"prompt": f"What is {i} + {i}?", "chosen": f"It is {2 * i}.", "rejected": "No.", "id": i, "unread": "x"}
    for i in range(12)
]


def write(path: Path, rows: list[dict[str, Any]], seconds: int, blank: int = 5) -> Path:
    """A shard of these rows; JSON lines with a blank one before row `blank`."""
    if path.suffix == ".parquet":
        options: Any = {"use_dictionary": ["rejected"], "compression": "none", "write_statistics": False}
        # a row group that is cut into two units, one without rows, and one that is a unit
        with pq.ParquetWriter(path, pa.Table.from_pylist(ROWS).schema, **options) as writer:
            for start, stop in ((0, 8), (8, 8), (8, 12)):
                writer.write_table(pa.Table.from_pylist(ROWS and rows).slice(start, stop - start))
    else:
        lines = ["\n" * (i == blank) + json.dumps(row) + "\n" for i, row in enumerate(rows)]
        encode = {".gz": lambda text: gzip.compress(text, 1, mtime=0), ".zst": zstd}.get(path.suffix, bytes)
        path.write_bytes(encode("".join(lines).encode()))
    os.utime(path, (seconds, seconds))
    return path


def found_now(config: ScoreConfig) -> tuple[list[Shard], resume.Standing, ModelJob]:
    """The shards of a run that goes on, and what of them is to do; those that changed are not refused."""
    job, spans = prepare(config.model_copy(update={"redo": tuple(config.input)}), write=False)
    return (
        [span.shard for span in spans],
        resume.list_standing(Store(job.output), spans, job.fingerprint),
        job,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_touched_shard_is_done_and_keeps_its_identity(
    kind: str, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, out = write(tmp_path / f"x.{kind}", ROWS, 1000), tmp_path / "out"
    write(tmp_path / "y.jsonl", ROWS, 1000)
    options: dict[str, Any] = {"unit_rows": 8, "keep": ["id"]}
    score_locally(tiny_model, [path, tmp_path / "y.jsonl"], out, **options)
    records = [r for r in commits.read_commits(Store(str(out))) if r.source == str(path)]
    assert [r.num_rows for r in records] == [4, 4, 4]
    digests = [r.content or "" for r in records]
    assert all(len(text) == 32 for text in digests)
    assert len(set(digests)) == (2 if kind == "parquet" else 3)  # two units of one row group
    write(path, ROWS, 2000)
    config = config_for(tiny_model, [path, tmp_path / "y.jsonl"], out, **options)
    with caplog.at_level(logging.INFO):
        shards, found, _ = found_now(config)
    (now,) = find_shards([str(path)])
    assert [(s.identity, s.stamp) for s in shards] == [
        (records[0].identity, now.identity),
        (find_shards([str(tmp_path / "y.jsonl")])[0].identity, None),
    ]
    assert len([line for line in caplog.messages if "1 shard differs only in modification time" in line]) == 1
    assert (found.left, found.changed) == ([], {})


@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_of_a_touched_shard_is_scored_under_its_first_identity(
    kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / f"x.{kind}", ROWS, 1000)
    score_locally(tiny_model, path, tmp_path / "whole", unit_rows=8)
    config = config_for(tiny_model, path, tmp_path / "out", unit_rows=8)
    job, (span,) = prepare(config)
    scorer = Scorer(job, "cpu")
    write_and_commit(scorer(next(read_and_tokenize(span, job))), job)
    write(path, ROWS, 2000)
    _, found, job = found_now(config)
    (rest,) = found.left
    for table in read_and_tokenize(rest, job):
        write_and_commit(scorer(table), job)
    commits.finish(Store(job.output))
    assert scores_of(tmp_path / "out") == pytest.approx(scores_of(tmp_path / "whole"))
    assert {r.identity for r in commits.read_commits(Store(job.output))} == {span.shard.identity}
    assert verify_output(job.output)[1] == []


def answer_replaced(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*rows[:9], rows[9] | {"chosen": "It is 81."}, *rows[10:]]


def kept_value_replaced(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rows[0] | {"id": 7}, *rows[1:]]


def rows_exchanged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rows[1], rows[0], *rows[2:]]


@pytest.mark.parametrize("change", [answer_replaced, kept_value_replaced, rows_exchanged])
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_shard_of_the_same_size_with_another_row_did_change(
    kind: str, change: Any, tiny_model: Path, tmp_path: Path
) -> None:
    path, out = write(tmp_path / f"x.{kind}", ROWS, 1000), tmp_path / "out"
    score_locally(tiny_model, path, out, unit_rows=8, keep=["id"])
    size = path.stat().st_size
    write(path, change(ROWS), 2000)
    assert path.stat().st_size == size
    config = config_for(tiny_model, path, out, unit_rows=8, keep=["id"])
    shards, found, _ = found_now(config)
    assert shards == find_shards([str(path)])
    assert list(found.changed) == [str(path)]


def test_lines_with_other_numbers_are_other_rows(tiny_model: Path, tmp_path: Path) -> None:
    path, out = write(tmp_path / "x.jsonl", ROWS, 1000, blank=5), tmp_path / "out"
    score_locally(tiny_model, path, out)
    write(path, ROWS, 2000, blank=6)
    assert found_now(config_for(tiny_model, path, out))[0] == find_shards([str(path)])


def test_lines_in_place_of_blank_ones_at_the_end_are_new_rows(tiny_model: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "x.jsonl", tmp_path / "out"
    line = json.dumps(ROWS[0]) + "\n"
    path.write_text(line + "\n" * len(line))
    score_locally(tiny_model, path, out)
    path.write_text(line + line)
    os.utime(path, (1000, 1000))
    assert found_now(config_for(tiny_model, path, out))[0] == find_shards([str(path)])


@pytest.mark.parametrize("place", [0, 4, 6], ids=["before", "between", "within"])
def test_a_line_in_place_of_white_space_around_a_unit_is_a_new_row(
    place: int, tiny_model: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "x.jsonl", tmp_path / "out"
    lines = [json.dumps(row) for row in ROWS]
    blank = [*lines[:place], " " * len(lines[0]), *lines[place:]]
    path.write_text("\n".join(blank) + "\n")
    score_locally(tiny_model, path, out, unit_rows=8)  # four rows
    path.write_text("\n".join([*lines[:place], lines[0], *lines[place:]]) + "\n")
    os.utime(path, (1000, 1000))
    config = config_for(tiny_model, path, out, unit_rows=8)
    assert found_now(config)[0] == find_shards([str(path)])


def test_columns_that_are_not_read_do_not_count(tiny_model: Path, tmp_path: Path) -> None:
    path, out = write(tmp_path / "x.parquet", ROWS, 1000), tmp_path / "out"
    score_locally(tiny_model, path, out)
    write(path, [row | {"unread": "y"} for row in ROWS], 2000)
    assert found_now(config_for(tiny_model, path, out))[1].left == []


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_commit_record_without_a_digest_leaves_the_shard_changed(
    kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    path, out = write(tmp_path / f"x.{kind}", ROWS, 1000), tmp_path / "out"
    score_locally(tiny_model, path, out)
    for file in (out / "_commits").iterdir():
        record = json.loads(file.read_text())
        del record["content"], record[CHECKSUM]  # as earlier versions wrote it
        file.write_text(json.dumps(record))
    write(path, ROWS, 2000)
    assert found_now(config_for(tiny_model, path, out))[0] == find_shards([str(path)])


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_shard_that_is_gone_bad_since_is_changed(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    path, out = write(tmp_path / f"x.{kind}", ROWS, 1000), tmp_path / "out"
    score_locally(tiny_model, path, out)
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert settled(Store(str(out)), find_shards([str(path)]), commits.list_commits(Store(str(out))), []) == (
        find_shards([str(path)])
    )


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_read_again_from_a_touched_shard_and_not_from_a_changed_one(
    kind: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(tmp_path / f"x.{kind}", ROWS, 1000), tmp_path / "out"
    score_locally(tiny_model, path, out, unit_rows=8)
    write(path, ROWS, 2000)
    second = tmp_path / "second"
    score_locally(tiny_model, path, second, unit_rows=8)  # of the same rows at another time
    row_id = next(iter(scores_of(out)))
    assert trace(find(str(out), row_id), None).candidate.response == ROWS[0]["chosen"]
    command = ["label", str(out), "--output", str(tmp_path / "labels"), "--temperature", "1"]
    assert main(command) == 0
    compare = ["compare", str(out), str(second)]
    assert main(compare) == 0
    write(path, [ROWS[1], ROWS[0], *ROWS[2:]], 3000)
    capsys.readouterr()
    assert main([*command[:3], str(tmp_path / "again"), *command[4:]]) == 2
    assert "changed since" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="changed since it was scored"):
        trace(find(str(out), row_id), None)


def test_a_column_whose_name_has_a_dot_is_part_of_what_is_compared(tiny_model: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "x.parquet", tmp_path / "out"
    for answer, changed in (("one", False), ("two", True)):
        rows = [{"prompt": f"question {i}", "the.answer": answer} for i in range(4)]
        pq.write_table(pa.Table.from_pylist(rows), path, compression="none")
        os.utime(path, (1 + changed, 1 + changed))
        options = {"layout": "rollouts", "column": ["response=the.answer"]}
        if changed:
            with pytest.raises(ConfigError, match="changed after it was scored"):
                prepare(config_for(tiny_model, path, out, **options))
        else:
            score_locally(tiny_model, path, out, **options)
