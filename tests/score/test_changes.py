"""A shard that changes while it is read is committed neither as it was nor as it is, and is no one's reject."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.plan.sample_runs import draw, read_blocks
from armo_ray.score.job import prepare
from armo_ray.score.poison import isolate
from armo_ray.score.replicas import Pool
from armo_ray.score.stages import read_and_tokenize
from armo_ray.storage.readers import BadRow, Row, read_rows, read_units, sample
from armo_ray.storage.shards import find_shards
from armo_ray.storage.units import Span, cut
from tests.storage.test_readers import KINDS
from tests.support.local import config_for

F = "fingerprint"
EVERY_KIND = ["parquet", "jsonl", "gz", "zst"]


class Planned(NamedTuple):
    path: Path
    span: Span


def contents(kind: str, word: str, rows: int = 300) -> bytes:
    """A shard of rows that hold a word, of the same size for words of one length, but for what compression makes."""
    entries = [{"i": i, "t": f"{word} {i:04}"} for i in range(rows)]
    if kind != "parquet":
        return KINDS[kind][1]("".join(json.dumps(row) + "\n" for row in entries).encode())
    sink = pa.BufferOutputStream()
    options: Any = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    pq.write_table(pa.Table.from_pylist(entries), sink, row_group_size=100, **options)
    whole: bytes = sink.getvalue().to_pybytes()
    return whole


def plan(directory: Path, kind: str, content: bytes) -> Planned:
    path = directory / ("x.parquet" if kind == "parquet" else f"x{KINDS[kind][0]}")
    path.write_bytes(content)
    os.utime(path, (1000, 1000))
    (span,) = cut(find_shards([str(path)]), F, 100, {})
    return Planned(path, span)


def count(row: Row) -> int:
    return 1


def in_place(path: Path, content: bytes) -> None:
    with path.open("r+b") as stream:  # as rsync --inplace does: the open file is this one
        stream.write(content)
        stream.truncate()


def renamed_onto(path: Path, content: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(content)
    other.rename(path)


def deleted(path: Path, content: bytes) -> None:
    path.unlink()


def cut_short(path: Path, content: bytes) -> None:
    in_place(path, content[:200])


CHANGES = [in_place, renamed_onto, cut_short, deleted]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_no_unit_follows_a_change_of_the_shard_that_is_read(
    kind: str, change: Callable[[Path, bytes], None], tmp_path: Path
) -> None:
    shard = plan(tmp_path, kind, contents(kind, "before"))
    units = read_units(shard.span, ["i", "t"], count, 100, F)
    first = next(units)
    assert [row["t"][:6] for _, row in first.rows if isinstance(row, dict)] == ["before"] * 100
    change(shard.path, contents(kind, "behind"))
    with pytest.raises(
        OSError, match=r"x\..* (changed|was deleted) while it was being read.*run the same command again"
    ):
        next(units)


@pytest.mark.parametrize("kind", ["jsonl", "gz"])
def test_a_change_within_the_only_unit_of_a_shard_is_seen(kind: str, tmp_path: Path) -> None:
    shard = plan(tmp_path, kind, contents(kind, "before"))

    def count_and_change(row: Row) -> int:
        if isinstance(row, dict) and row["i"] == 50:
            in_place(shard.path, contents(kind, "behind"))
        return 1

    with pytest.raises(OSError, match="changed while it was being read"):
        next(read_units(shard.span, [], count_and_change, 10_000, F))


def test_a_shard_without_a_footer_that_is_whole_by_now_is_read_again_and_not_rejected(tmp_path: Path) -> None:
    whole = contents("parquet", "before")
    shard = plan(tmp_path, "parquet", whole[: len(whole) // 2])
    assert shard.span.error is not None
    shard.path.write_bytes(whole)
    with pytest.raises(OSError, match="changed while it was being read"):
        next(read_units(shard.span, ["i", "t"], count, 100, F))


@contextmanager
def rewriting(path: Path, versions: list[bytes]) -> Iterator[None]:
    """Somebody else, who writes a file again and again, in place, renamed onto it, or in two halves."""
    stop = threading.Event()

    def write() -> None:
        k = 0
        while not stop.wait(0.002):
            k += 1
            content = versions[k % len(versions)]
            if k % 3:
                in_place(path, content[: len(content) // 2] if k % 3 == 1 else content)
            else:
                renamed_onto(path, content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def words_of(rows: list[Row]) -> set[str]:
    """The words of whole rows; of a row that is not whole, its reason."""
    return {row.reason if isinstance(row, BadRow) else str(row["t"])[:6] for row in rows}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_what_is_read_while_another_writes_is_never_of_two_versions(kind: str, tmp_path: Path) -> None:
    versions = [contents(kind, word, rows) for word, rows in (("before", 700), ("behind", 500))]
    path = plan(tmp_path, kind, versions[0]).path
    seen: list[set[str]] = []
    errors: list[str] = []
    with rewriting(path, versions):
        for _ in range(60):
            try:
                shards = find_shards([str(path)])
                (span,) = cut(shards, F, 2000, {})
                units = list(read_units(span, ["i", "t"], count, 2000, F))
                seen.append(words_of([row for unit in units for _, row in unit.rows]))
                again = read_rows(span.shard, units[0].unit, ["i", "t"], set(range(0, 500, 7)))
                seen.append(words_of(list(again.values())))
                seen.append(words_of(list(sample(span.shard, 400)[2])))
                drawn = [stratum.drawn for stratum in draw([span], 4)]
                seen += [words_of(run.rows) for blocks in drawn for run in read_blocks(blocks, ["i", "t"])]
            except (OSError, ValueError) as error:  # ConfigError where it changes while its footer is read
                errors.append(str(error))
    assert errors
    whole = {frozenset({"before"}), frozenset({"behind"})}
    torn = {"unreadable_shard", "malformed_row"}  # of a half that stood still while it was read
    assert all(words <= torn or frozenset(words - torn) in whole for words in seen)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_run_ends_with_what_happened_to_the_shard_and_commits_nothing_of_it(
    kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"What is {i}?", "chosen": "b", "rejected": "c"} for i in range(8)]
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job, (span,) = prepare(config_for(tiny_model, path, tmp_path / "out", unit_rows=4))
    units = read_and_tokenize(span, job)
    next(units)
    path.write_bytes(path.read_bytes()[:-30])
    told = r"x\..* changed while it was being read"
    with pytest.raises(OSError, match=told):
        next(units)
    with pytest.raises(OSError, match=told):  # and so does the unit that the graph could not do
        next(isolate([span], job, Pool(0, 1, 1, "cpu")))
    with suppress(FileNotFoundError):
        assert not os.listdir(tmp_path / "out" / "_commits")
