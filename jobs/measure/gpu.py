"""Measure the engine on a GPU, most important first, within a time limit.

python -m jobs.measure.gpu OUT [--seconds 560] [--stages first|second|NAME ...] [--wheels DIR] [--dry]
python -m jobs.measure.gpu --summary OUT [--markdown]

Results are lines of OUT/results.jsonl, on disk as soon as they are measured. The same command, run again, continues
with the stages that are not done. Stages run in a worker process: if one hangs or crashes, the worker is killed and the
next stage begins in a new one. Needs torch, transformers, safetensors, numpy, tokenizers, and pytest for two stages.
"""

import argparse
import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Container, Sequence
from pathlib import Path

from jobs.measure.gpu_results import FINAL, append, ends, read, summary

# Seconds that each stage needs on an H200; it is skipped if less is left.
FIRST = {
    "machine": 10,
    "attention-tests": 60,
    "rates": 30,
    "build": 25,
    "packed": 25,
    "shared": 15,
    "engine": 15,
    "padded-8": 40,
    "sorted": 30,
    "bits": 20,
    "profile": 15,
    "compile": 80,
    "fp8": 25,
    "fp8+compile": 70,
    "other-tests": 120,
    "load": 90,
}
SECOND = {"bench": 200, "job": 150, "split-70b": 120}
NEEDS = FIRST | SECOND
TRIAL_NEEDS = 1  # with --dry, whose shape is tiny
PATIENCE = 3  # a stage is killed when it takes this many times what it needs
RESTART = 75  # status of a worker that can no longer use the GPU after an error
NO_DEVICE = 76
ROOT = Path(__file__).parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT", help="folder for the results")
    parser.add_argument(
        "--seconds", type=float, default=560, help="stop everything before this time (default: 560)"
    )
    parser.add_argument("--stages", nargs="+", default=["first"], metavar="NAME", help=", ".join(NEEDS))
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="wheels that the stage named job installs")
    parser.add_argument("--dry", action="store_true", help="try the script with a tiny shape on the CPU")
    parser.add_argument("--summary", type=Path, metavar="OUT", help="only print the summary of a folder")
    parser.add_argument("--markdown", action="store_true", help="print the summary in Markdown")
    args = parser.parse_args(argv)
    if args.summary is None and args.out is None:
        parser.error("OUT: give a folder, or --summary")
    if unknown := set(args.stages) - {"first", "second", *NEEDS}:
        parser.error(f"--stages: {', '.join(sorted(unknown))}: not one of first, second, {', '.join(NEEDS)}")
    if args.summary is None:
        args.out.mkdir(parents=True, exist_ok=True)
        if not run(args):
            return 1
    print("\n" + summary(args.summary or args.out, args.markdown))
    return 0


def run(args: argparse.Namespace) -> bool:
    """Run the stages that are left, in one worker after another; False if there is no GPU.

    Ends when all stages have ended or the time is up.
    """
    deadline = time.monotonic() + args.seconds - min(5, args.seconds / 10)
    old = read(args.out)
    left = stages_to_run(args.stages, {stage: line["status"] for stage, line in ends(old).items()})
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
        while left and time.monotonic() < deadline:
            worker = start(args, deadline, scratch, left)
            try:
                patience = math.inf if args.dry else PATIENCE
                outcome = watch(worker, args.out, len(read(args.out)), deadline, patience)
            finally:
                end(worker)
            if outcome in ("finished", "no device"):
                return outcome == "finished"
            failed, left = after(outcome, left, ends(read(args.out)[len(old) :]))
            for stage in failed:
                append(args.out, stage, status=outcome, reason=f"worker's status {worker.returncode}")
    return True


def after(outcome: str, stages: Sequence[str], ended: Container[str]) -> tuple[list[str], list[str]]:
    """The stage in which a worker failed, if it did, and the stages that are left for the next worker."""
    left = [name for name in stages if name not in ended]
    failed = 0 if outcome == "restart" else 1
    return left[:failed], left[failed:]


def start(
    args: argparse.Namespace, deadline: float, scratch: str, stages: Sequence[str]
) -> subprocess.Popen[bytes]:
    """A worker for these stages. Its standard input closes when this process ends, and then the worker ends too."""
    command = [sys.executable, "-m", "jobs.measure.gpu_worker", str(args.out.resolve()), str(deadline)]
    command += [str(args.wheels.resolve()) if args.wheels else "", "dry" if args.dry else "", *stages]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {"HF_HUB_OFFLINE": "1", **os.environ, "PYTHONPATH": paths, "TMPDIR": scratch}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, start_new_session=True)


def stages_to_run(names: Sequence[str], ended: dict[str, str]) -> list[str]:
    """The stages of the named lists that did not end for good, and named stages that are not done."""
    chosen: dict[str, None] = {}
    for name in names:
        members = {"first": FIRST, "second": SECOND}.get(name)
        if members is None:
            chosen |= dict.fromkeys([name] if ended.get(name) != "done" else [])
        else:
            chosen |= dict.fromkeys(stage for stage in members if ended.get(stage) not in FINAL)
    return list(chosen)


def watch(worker: subprocess.Popen[bytes], out: Path, before: int, deadline: float, patience: float) -> str:
    """Wait for a worker and return how it ended: "hung" if its stage took too long, "cut off" at the deadline.

    `before`: lines in the results before it began. `patience`: a stage may take this many times what it needs.
    """
    seen, began = before, time.monotonic()
    while worker.poll() is None:
        time.sleep(0.1)
        lines = read(out)
        if len(lines) > seen and any("status" in line for line in lines[seen:]):
            began = time.monotonic()
        seen = len(lines)
        stage = lines[-1]["stage"] if lines[before:] else None
        if time.monotonic() > deadline:
            return "cut off"
        if stage in NEEDS and time.monotonic() - began > patience * NEEDS[stage]:
            return "hung"
    return {0: "finished", RESTART: "restart", NO_DEVICE: "no device"}.get(worker.returncode, "crashed")


def end(worker: subprocess.Popen[bytes]) -> None:
    """Kill a worker and every process that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


if __name__ == "__main__":
    sys.exit(main())
