"""`jobs.measure.gpu` loses nothing when it ends, goes on where it ended, and judges what it measured."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jobs.measure import gpu
from jobs.measure.gpu_results import append, read, summary
from tests.support.paths import ROOT

STAGES = ["machine", "rates", "packed", "bits"]


class Runs(NamedTuple):
    killed: list[dict[str, Any]]  # lines that a run left which was killed after its first stage
    worker_ended: bool  # although only its parent was killed
    both: list[dict[str, Any]]  # after the same command again, which ran to the end
    stdout: str  # of that run


def start(out: Path, scratch: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.measure.gpu", str(out), "--dry", "--seconds", "200", "--stages"]
    environment = {**os.environ, "TMPDIR": str(scratch)}  # a killed run leaves what it had there
    return subprocess.Popen([*command, *STAGES], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or is a zombie, within 10 s."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A trial that is killed after its first stage, and the same one again."""
    out, scratch = (tmp_path_factory.mktemp(name) for name in ("gpu", "scratch"))
    first = start(out, scratch)
    while not any(line.get("status") == "done" for line in read(out)):
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()  # waits for the worker too, which prints to the same pipe
    killed = read(out)
    (worker,) = {line["pid"] for line in killed if "pid" in line}
    worker_ended = has_ended(worker)
    second = start(out, scratch)
    stdout, _ = second.communicate()
    assert second.returncode == 0
    return Runs(killed, worker_ended, read(out), stdout)


def statuses(lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(line["stage"], line["status"]) for line in lines if "status" in line]


@pytest.mark.nightly
def test_a_killed_run_leaves_what_it_measured_and_no_process(runs: Runs) -> None:
    assert statuses(runs.killed)[:2] == [("machine", "started"), ("machine", "done")]
    assert ("bits", "done") not in statuses(runs.killed)
    assert any("versions" in line for line in runs.killed)
    assert runs.worker_ended


@pytest.mark.nightly
def test_the_same_command_again_runs_only_the_stages_that_are_left(runs: Runs) -> None:
    assert runs.both[: len(runs.killed)] == runs.killed
    again = statuses(runs.both[len(runs.killed) :])
    assert "machine" not in {stage for stage, _ in again}
    assert [stage for stage, status in again if status == "done"] == STAGES[1:]


def test_every_line_names_its_stage_and_device_and_has_what_was_measured(runs: Runs) -> None:
    assert {line["stage"] for line in runs.both} == set(STAGES)
    assert {line["device"] for line in runs.both} == {"cpu"}
    products = {line["product"] for line in runs.both if line.get("bf16_flops", 0) > 0}
    assert products == {"square", "q", "k", "qkv", "gate", "gate_up", "down"}
    speeds = {line["work"]: line for line in runs.both if line.get("contender") == "packed"}
    assert list(speeds) == ["pairs", "rollouts-8", "long-prompts"]
    assert all(s["tokens"] == s["computed_tokens"] and len(s["passes"]) == 3 for s in speeds.values())
    assert "a trial of the script, whose figures mean nothing: cpu (Python 3." in runs.stdout


def test_a_last_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    append(tmp_path, "rates", product="q")
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"stage": "rates", "prod')
    append(tmp_path, "rates", product="k")
    assert [line["product"] for line in read(tmp_path)] == ["q", "k"]


@pytest.mark.parametrize(
    ("seconds", "patience", "outcome"), [(0.5, 3.0, "cut off"), (60.0, 0.01, "hung"), (60.0, 9.0, "crashed")]
)
def test_a_stage_without_end_is_ended_by_its_own_limit_or_the_whole_one(
    seconds: float, patience: float, outcome: str, tmp_path: Path
) -> None:
    command = ["sleep", "60"] if outcome != "crashed" else ["false"]
    worker = subprocess.Popen(command, start_new_session=True)
    append(tmp_path, "machine", status="started")
    deadline = time.monotonic() + seconds
    try:
        assert gpu.watch(worker, tmp_path, 0, deadline, patience) == outcome
    finally:
        gpu.end(worker)
    assert worker.returncode == (1 if outcome == "crashed" else -signal.SIGKILL)


@pytest.mark.parametrize(
    ("outcome", "fallen", "left"),
    [("restart", [], ["rates", "build"]), ("crashed", ["rates"], ["build"]), ("hung", ["rates"], ["build"])],
)
def test_the_next_worker_leaves_out_only_the_stage_in_which_the_last_one_ended(
    outcome: str, fallen: list[str], left: list[str]
) -> None:
    assert gpu.after(outcome, ["machine", "rates", "build"], {"machine"}) == (fallen, left)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["first"], [name for name in gpu.FIRST if name not in ("machine", "rates")]),
        (["rates", "build"], ["rates", "build"]),
        (["machine"], []),
        (["second", "job"], list(gpu.SECOND)),
    ],
)
def test_a_stage_that_hung_runs_again_only_if_it_is_named(names: list[str], chosen: list[str]) -> None:
    assert gpu.stages_to_run(names, {"machine": "done", "rates": "hung", "build": "error"}) == chosen


def measured(device: str = "NVIDIA H200") -> list[dict[str, Any]]:
    """Lines of a run in which two goals were missed and two were not measured."""
    speeds = {
        "packed": (1.0, {"flops": 790.0, "dedup_ratio": 2.0}),
        "shared": (0.5434, {"dedup_ratio": 2.0}),
        "engine": (0.5, {"dedup_ratio": 2.0, "host_gap": 0.0301}),
        "padded-8": (1.3, {"dedup_ratio": 2.0}),
        "engine+compile": (0.45, {"dedup_ratio": 2.0}),
        "fp8+compile": (0.3, {"dedup_ratio": 2.0}),
    }
    lines: list[dict[str, Any]] = [
        {"stage": "machine", "versions": {"torch": "2.11.0"}},
        {"stage": "rates", "product": "square", "bf16_flops": 1000.0},
        {"stage": "bits", "same_bits": True, "same_bits_shared": False},
        {"stage": "load", "gigabytes": 16.1},
        {"stage": "load", "cache": "warm", "seconds": 12.0},
        {"stage": "fp8+compile", "contender": "fp8+compile", "work": "pairs", "spearman": 0.995},
        {"stage": "padded-8", "status": "error", "reason": "RuntimeError('first try')"},
        {"stage": "padded-8", "status": "done"},
        {"stage": "compile", "status": "error", "reason": "RuntimeError('no compiler')"},
    ]
    for name, (seconds, facts) in speeds.items():
        speed = {"contender": name, "work": "pairs", "seconds": seconds, "tokens_per_s": 5000 / seconds}
        lines.append({"stage": name, **speed, **facts})
    return [{"device": device, **line} for line in lines]


VERDICTS = {
    "MFU without sharing, eager": ("0.790", "MET"),
    "MFU without sharing, compiled": ("-", "NOT MEASURED"),
    "pairs, x padded batches of 8": ("2.60", "MET"),
    "8 rollouts, x padded batches of 8": ("-", "NOT MEASURED"),
    "sharing, of the deduplication ratio": ("0.920", "MET"),
    "fp8+compile, x compiled bf16": ("1.50", "MET"),
    "Spearman of fp8+compile with bf16": ("0.995", "MET"),
    "equal bits when shuffled, fixed packs": ("no", "MISSED"),
    "host gap": ("0.030", "MISSED"),
    "seconds to load 16 GB, warm": ("12.00", "MET"),
}


def test_the_summary_of_stored_results_says_which_goals_were_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [*measured(), *measured("NVIDIA H100 80GB HBM3")[:5]]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert gpu.main(["--summary", str(tmp_path), "--markdown"]) == 0
    text = capsys.readouterr().out.strip()
    assert text.startswith("NVIDIA H200 (torch 2.11.0)\n\n| name | goal | measured | verdict |")
    cells = [row.strip("| ").split(" | ") for row in text.splitlines() if row.startswith("| ")]
    assert {name: (value, verdict) for name, _, value, verdict in (r for r in cells if len(r) == 4)} == {
        "name": ("measured", "verdict"),
        **VERDICTS,
    }
    assert "| engine | 10,000 |" in text
    assert "left out: lines measured on NVIDIA H100 80GB HBM3" in text
    assert text.endswith("\n\ncompile: error RuntimeError('no compiler')")


def test_a_small_checkpoint_says_nothing_about_the_time_to_load_a_large_one(tmp_path: Path) -> None:
    for line in measured():
        append(tmp_path, **(line | ({"gigabytes": 0.01} if "gigabytes" in line else {})))
    (row,) = (row for row in summary(tmp_path).splitlines() if row.startswith("seconds to load"))
    assert row.endswith("NOT MEASURED")


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="needs a machine without a GPU")
def test_without_a_gpu_the_script_says_how_to_try_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.measure.gpu", str(tmp_path), "--stages", "machine"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "torch finds no CUDA device; --dry tries the script on a CPU\n"
