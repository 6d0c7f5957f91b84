"""Shards of nothing but blank lines, or of one endless line, take bounded time and memory, and their rows are kept."""

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from armo_ray.storage.readers import BadRow, parse, sample
from tests.storage.test_readers import only_bad, read, rows_of, shard_at, zstd
from tests.support.paths import ROOT

MIB = 1 << 20
ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda content: gzip.compress(content, 1),
    ".zst": zstd,
}
READ = """
import resource, sys, time
from armo_ray.storage import units
units.UNIT_BYTES = 16 << 20  # not 64, which would only take longer
from armo_ray.plan.sample_runs import draw, read_blocks
from armo_ray.storage.readers import BadRow, read_units, sample
from armo_ray.storage.shards import find_shards
from armo_ray.storage.units import Span, cut

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

shards, before, began = find_shards(sys.argv[1:]), peak(), time.process_time()
for shard in shards:
    rows = sample(shard, 1000)[2]
    units = list(read_units(Span(shard), [], lambda row: 1, 2048, ""))
    drawn = [run for stratum in draw(cut([shard], "", 2048, {}), 8) for run in read_blocks(stratum.drawn, [])]
    found = [(n, row.detail if isinstance(row, BadRow) else row["i"]) for unit in units for n, row in unit.rows]
    print(len(rows), found)
print(peak() - before, time.process_time() - began)
"""


@pytest.mark.parametrize("suffix", ENCODE)
def test_blank_lines_and_endless_lines_take_bounded_time_and_memory(suffix: str, tmp_path: Path) -> None:
    encode, size = ENCODE[suffix], 24 if suffix == "" else 72  # MiB
    blocks = {"blank": b"\n", "endless": b"x"} | ({"nul": b"\0"} if suffix == "" else {})
    for name, block in blocks.items():
        with (tmp_path / f"{name}.jsonl{suffix}").open("wb") as stream:
            stream.write(encode(b'{"i": 1}\n'))
            stream.writelines([encode(block * 8 * MIB)] * (size // 8))
            stream.write(encode(b'\n{"i": 2}\n'))
    command = [sys.executable, "-c", READ, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *told, used = done.stdout.splitlines()
    long = f"1 {[(0, 1), (1, 'a line of more than 16 MiB'), (2, 2)]}"
    assert told == [f"1 {[(0, 1), (size * MIB + 2, 2)]}", *[long] * (len(blocks) - 1)]
    mebibytes, seconds = map(float, used.split())
    assert mebibytes < 4 * 16
    assert seconds < 60


def test_a_sample_looks_at_no_more_than_64_mib_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "x.jsonl.zst").write_bytes(zstd(b"\n" * 65 * MIB) + zstd(b'{"i": 1}\n'))
    assert sample(shard_at(tmp_path / "x.jsonl.zst"), 10) == ([], None, [])
    assert "x.jsonl.zst: only its first 64 MiB are read" in caplog.text


@pytest.mark.parametrize(("levels", "kept"), [(199, True), (201, False), (900, False), (100_000, False)])
def test_json_is_read_as_deep_as_the_limit_wherever_it_is_read(
    levels: int, kept: bool, tmp_path: Path
) -> None:
    line = b'{"a": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"
    (tmp_path / "x.jsonl").write_bytes(b'{"i": 1}\n' + line + b'\n{"i": 2}\n')
    units = read(tmp_path / "x.jsonl")
    assert len(rows_of(units)) == 3
    if kept:
        assert not [row for _, row in rows_of(units) if isinstance(row, BadRow)]
    else:
        number, bad = only_bad(units)
        assert (number, bad.reason, bad.raw) == (1, "malformed_row", line.decode())
        assert "not valid JSON" in bad.detail


def test_wide_json_is_not_deep() -> None:
    assert isinstance(parse(b'{"a": [' + b"[], " * 5000 + b"[]]}"), dict)


def test_rows_without_candidates_do_not_gather_without_end(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"n": 0}\n' * 5000)
    units = read(tmp_path / "x.jsonl", 100)
    assert [len(unit.rows) for unit in units] == [1600, 1600, 1600, 200]
