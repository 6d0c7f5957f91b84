"""What a run shows of itself: numbers that follow from its records, on terminals of any width and in logs."""

import io
import logging
import os
import pty
import re
import struct
import sys
import termios
import time
from dataclasses import replace
from fcntl import ioctl
from pathlib import Path

import pyte
import pytest
from rich.console import Console

from armo_ray.engine.peaks import peak_of
from armo_ray.formatting.numbers import clock, rate
from armo_ray.score.job import prepare
from armo_ray.score.progress import Counts, Progress, every
from armo_ray.score.progress.terminal import render
from armo_ray.score.progress.text import line
from armo_ray.score.stages import Scorer, read_and_tokenize, write_and_commit
from armo_ray.storage.commits import SUCCESS
from armo_ray.storage.store import Store
from tests.support.commit_records import committed
from tests.support.local import config_for, score_locally
from tests.support.paths import ROOT, SAMPLE

NOW = 1000.0


def two_units() -> Counts:
    other = committed(rejected={"poison": 1, "too_long": 1}, scored=0)
    return Counts(total_bytes=1000).plus(committed(), NOW).plus(other, NOW + 10)


def test_the_counts_of_records_are_those_counted_by_hand() -> None:
    counts, now = two_units(), NOW + 10
    assert counts.started == NOW - 12.5
    assert (counts.units, counts.scored, counts.rejected) == (2, 8, {"too_long": 3, "poison": 1})
    assert (counts.done, counts.eta_s(now)) == (0.5, 22.5)
    assert counts.rate(counts.num_tokens, now) == 6000 / 22.5
    assert (counts.sharing, counts.pack_fill) == (1.5, 0.75)
    assert counts.idle == 4 / 20
    assert counts.mfu == 600 / (100 * 20)
    assert counts.retries == 0
    assert replace(counts, restarts=2, isolated=1).retries == 3


def test_a_device_of_unknown_speed_has_no_mfu_and_spoils_that_of_the_run() -> None:
    counts = two_units().plus(committed(peak_flops=None), NOW).plus(committed(), NOW)
    assert counts.mfu is None
    assert "mfu=- " in line(counts, NOW)


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 80GB HBM3", "fp8", 1979e12),
        ("NVIDIA H100 80GB HBM3", "float32", None),
        ("NVIDIA A100-SXM4-80GB", "fp8", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16", None),
        ("Some GPU", "bfloat16", None),
    ],
)
def test_the_peak_of_a_gpu_is_told_where_it_is_known(name: str, dtype: str, peak: float | None) -> None:
    assert peak_of(name, dtype) == peak


def test_before_the_first_unit_no_number_is_made_up() -> None:
    counts = Counts(total_bytes=1000)
    told = dict(word.split("=") for word in line(counts, NOW).split()[1:])
    zero = {"done", "units", "scored", "rejected", "retries"}
    assert {name for name, value in told.items() if value != "-"} == zero


def test_a_log_line_is_one_line_of_words() -> None:
    told = line(replace(two_units(), replicas=3), NOW + 10)
    name, *words = told.split(" ")
    assert name == "progress"
    assert all(re.fullmatch(r"[a-z/-]+=\S+", word) for word in words)
    assert {"done=50.0%", "eta=0:00:22", "reasons=poison:1,too_long:3", "tokens/s=267"} <= set(words)
    assert {"sharing=1.50x", "fill=75.0%", "mfu=30.0%", "idle=20.0%", "replicas=3"} <= set(words)


def test_the_records_of_a_run_add_up_to_its_manifest(tiny_model: Path, tmp_path: Path) -> None:
    score_locally(tiny_model, SAMPLE, tmp_path / "out", unit_rows=100, max_length=700)
    job, spans = prepare(config_for(tiny_model, SAMPLE, tmp_path / "again", unit_rows=100, max_length=700))
    counts = Counts(sum(span.shard.size for span in spans))
    scorer = Scorer(job, "cpu")
    for table in read_and_tokenize(spans[0], job):
        counts = counts.plus(write_and_commit(scorer(table), job), time.monotonic())
    manifest = Store(str(tmp_path / "out")).read_json(SUCCESS) or {}
    assert replace(counts.totals, shards=1).to_dict() == manifest["totals"]
    assert 0.99 < counts.done <= 1.0
    assert counts.sharing is not None
    assert counts.sharing > 1
    assert counts.pack_fill is not None
    assert 0.5 < counts.pack_fill <= 1
    assert counts.flops > 0


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 250])
def test_the_display_fits_a_terminal_of_any_width(width: int) -> None:
    many = {"too_long": 1234567, "poison": 1, "empty_prompt": 22, "malformed_row": 3, "no_answer_turn": 5}
    counts = replace(
        two_units(),
        scored=98765432,
        rejected=many,
        computed_tokens=4 * 10**9,
        num_tokens=6 * 10**9,
        replicas=512,
    )
    for shown in (Counts(1000), counts):
        console = Console(width=width, file=io.StringIO())
        console.print(render(shown, NOW + 10))
        drawn = console.file.getvalue().splitlines()
        assert max(map(len, drawn)) <= width
    text = " ".join("".join(drawn).split())
    for value in ("50%", "98,765,432", "1,234,598", "30.0%", "75.0%", "1.50x", "512"):
        assert value in text
    assert len(drawn) <= (6 if width >= 80 else 30)


@pytest.mark.parametrize(
    ("seconds", "told"), [(None, "-"), (0, "0:00:00"), (59.6, "0:01:00"), (360000, "100:00:00")]
)
def test_a_time_is_told_in_hours(seconds: float | None, told: str) -> None:
    assert clock(seconds) == told


@pytest.mark.parametrize(
    ("value", "told"), [(None, "-"), (0.5234, "0.523"), (34.12, "34.1"), (12345.6, "12,346")]
)
def test_a_rate_has_three_digits_at_least(value: float | None, told: str) -> None:
    assert rate(value, grouped=True) == told


CHILD = """
import logging, sys, time
from armo_ray.score.progress import Counts
from armo_ray.score.progress.terminal import render, shown
logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
counts = Counts(1000, started=0.0, units=5, source_bytes=500, rejected={"too_long": 3})
logging.info("before")
with shown(lambda: render(counts, 100.0)):
    time.sleep(0.4)
    logging.info("during, long enough to be " + "wrapped " * 12 + "by the terminal")
    print("to stdout", flush=True)
    time.sleep(0.4)
    sys.stderr.write("to stderr\\n")
    time.sleep(0.4)
logging.info("after")
"""


def test_the_display_goes_above_nothing_and_leaves_nothing_behind() -> None:
    screen = pyte.Screen(80, 24)
    stream = pyte.ByteStream(screen)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, "-c", CHILD], {**os.environ, "TERM": "xterm-256color"})
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    seen: set[str] = set()
    while content := read(terminal):
        stream.feed(content)
        seen |= {text.strip() for text in screen.display}
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert any("50%  ETA 0:01:40" in text for text in seen)
    assert "rejected: 3 too_long" in seen
    left = " ".join(text.strip() for text in screen.display if text.strip())
    wrapped = "during, long enough to be " + "wrapped " * 12 + "by the terminal"
    assert left == f"INFO before INFO {wrapped} to stdout to stderr INFO after"
    assert not screen.cursor.hidden


def read(terminal: int) -> bytes:
    """What a terminal shows next; nothing when all that wrote to it have ended."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


def test_what_is_done_now_and_then_is_done_at_the_start_and_at_the_end() -> None:
    done: list[str] = []
    with every(3600, "counting", lambda: done.append("now")):
        while not done:
            time.sleep(0.01)
        assert done == ["now"]
    assert done == ["now", "now"]


def test_a_run_goes_on_where_neither_replicas_nor_metrics_can_be_had(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> tuple[int, int]:
        raise RuntimeError("no such cluster")

    with (
        caplog.at_level(logging.INFO),
        Progress(1000, 0.0, {"model": "m, but of no output"}, fail) as progress,
    ):
        progress.update(committed())
        progress.update(committed(), isolated=True)
    told = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert sorted(text.split(",")[0] for text in told) == [
        "counting replicas failed",
        "exporting metrics failed",
    ]
    last = [entry.getMessage() for entry in caplog.records if entry.getMessage().startswith("progress ")][-1]
    assert {"units=2", "scored=16", "retries=1"} <= set(last.split())
