"""Measure what many units cost the driver: planning, finding what a resumed run has left, finishing, executing.

python -m jobs.measure.units --model DIR [--units 1000 10000 100000] [--execute 1000 5000] [--nights 100000 365000]

A night is 1,000 new units in an output that holds so many of earlier nights, and is finished. New units are as small as
possible: two candidates. Each measurement has a process of its own; memory is its peak. Units are executed by a run,
and by a graph of the same shape whose steps do nothing: that is what Ray itself costs the driver.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray.score.card import Card
from armo_ray.score.config import ScoreConfig, load_config
from armo_ray.score.job import prepare
from armo_ray.storage import commits, resume
from armo_ray.storage.json_files import to_json
from armo_ray.storage.records import CommitRecord, ForwardPasses, PartEntry, Timing
from armo_ray.storage.shards import hash_of
from armo_ray.storage.store import Store
from jobs.measure.scale import measure

UNITS_A_SHARD = 1000
STEPS = ("read", "tokenize", "wait", "pack", "model", "write")


def write_shards(folder: Path, units: int) -> None:
    """Write shards of 1,000 row groups of one pair each."""
    folder.mkdir()
    for shard in range(0, units, UNITS_A_SHARD):
        rows = min(UNITS_A_SHARD, units - shard)
        table = pa.table(
            {"prompt": ["What is 2+2?"] * rows, "chosen": ["4"] * rows, "rejected": ["5"] * rows}
        )
        pq.write_table(table, folder / f"{shard // UNITS_A_SHARD:05}.parquet", row_group_size=1)


def plan(folder: str, model: str) -> dict[str, Any]:
    """Seconds to plan, to list what is left when 90 % is committed, and to finish; and the peak MiB."""
    started = time.perf_counter()
    job, spans = prepare(_night(folder, model))
    seconds = {"plan": time.perf_counter() - started}
    store = Store(job.output)
    units = [(span.shard, unit) for span in spans for unit in span.units]
    tenth = len(units) // 10
    _commit(store, job.fingerprint, units[tenth:])
    started = time.perf_counter()
    left = resume.to_do(store, spans, job.fingerprint)
    seconds["resume"] = time.perf_counter() - started
    assert sum(len(span.units) for span in left) == tenth
    _commit(store, job.fingerprint, units[:tenth])
    started = time.perf_counter()
    commits.finish(store)
    seconds["finish"] = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"units": len(units), "seconds": seconds, "peak_mib": peak}


def fill(folder: str, model: str, units: int) -> float:
    """Begin an output with the units of earlier nights, whose shards are gone. Returns the seconds to finish it."""
    job, _ = prepare(_night(folder, model))
    store = Store(job.output)
    records = Path(store.root, commits.COMMITS)
    records.mkdir()
    for number in range(units):
        record = _of_a_night(number, job.fingerprint, units)
        (records / f"{record.unit}.json").write_bytes(record.to_json())
    started = time.perf_counter()
    commits.finish(store)
    return time.perf_counter() - started


def night(folder: str, model: str) -> dict[str, Any]:
    """Seconds to plan a night and to finish it, as a run does, without the work between; and the peak MiB."""
    clocks = {"": time.perf_counter, " of CPU": time.process_time}
    started = {name: clock() for name, clock in clocks.items()}
    job, spans = prepare(_night(folder, model))
    store = Store(job.output)
    left = resume.standing(store, spans, job.fingerprint).left
    seconds = {f"plan{name}": clock() - started[name] for name, clock in clocks.items()}
    units = [(span.shard, unit) for span in left for unit in span.units]
    _commit(store, job.fingerprint, units)
    started = {name: clock() for name, clock in clocks.items()}
    assert resume.to_do(store, spans, job.fingerprint) == []
    log = commits.finish(store)
    Card(store, job, [f"{folder}/in"]).complete(log)
    assert log.totals(sources={span.shard.uri for span in spans}).units == len(units)
    seconds |= {f"finish{name}": clock() - started[name] for name, clock in clocks.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"units": len(units), "seconds": seconds, "peak_mib": peak}


def _night(folder: str, model: str) -> ScoreConfig:
    options = {"input": [f"{folder}/in"], "output": f"{folder}/out", "model": model, "unit_rows": 2}
    return load_config(None, options)


def _of_a_night(number: int, fingerprint: str, units: int) -> CommitRecord:
    """A record like those of a run, of 2,048 candidates; every tenth has a reject."""
    shard, ordinal = divmod(number, UNITS_A_SHARD)
    source = f"/gone/date={shard:05}/rollouts.parquet"
    name = hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()
    unit = hash_of(source) + name[:16]
    rejects = [PartEntry(f"rejects/part-{unit}.parquet", 1, 3456, name)] if number % 10 == 0 else []
    return CommitRecord(
        unit=unit,
        source=source,
        identity="123456789-1764000000.1234567",
        ordinal=ordinal,
        first_row=ordinal * 1024,
        num_rows=1024,
        last=ordinal == UNITS_A_SHARD - 1 or number == units - 1,
        candidates=2048,
        scored=2048 - len(rejects),
        rejected={"too_long": 1} if rejects else {},
        num_tokens=1_234_567 + number,
        computed_tokens=1_000_123 + number,
        content=name,
        run_fingerprint=fingerprint,
        parts=(
            PartEntry(f"scores/date={shard:05}/part-{unit}.parquet", 2048 - len(rejects), 345_678, name),
            *rejects,
        ),
        timing=Timing(
            {step: int(name[i : i + 5], 16) / 1e5 for i, step in enumerate(STEPS)}, 1.7e9 + number, 9.8
        ),
        passes=ForwardPasses(70, 1_000_000 + number, 1_146_880, 10**16 + number, 9.9e14, 16_384),
        committed_at="2026-11-20T03:12:45.120+00:00",
    )


def _commit(store: Store, fingerprint: str, units: list[Any]) -> None:
    """Write commit records like a run, without parts. Writing is not measured, so it bypasses the store."""
    folder = Path(store.root, commits.COMMITS)
    folder.mkdir(exist_ok=True)
    for shard, unit in units:
        record = CommitRecord(
            unit=unit.id,
            source=shard.uri,
            identity=shard.identity,
            ordinal=unit.ordinal,
            first_row=unit.first_row,
            num_rows=unit.num_rows,
            last=unit.last,
            candidates=2,
            scored=2,
            rejected={},
            num_tokens=40,
            computed_tokens=40,
            run_fingerprint=fingerprint,
            parts=(PartEntry(f"scores/part-{unit.id}.parquet", rows=2, bytes=30000),),
        )
        (folder / f"{unit.id}.json").write_bytes(to_json(record.to_dict()))


def execute(folder: str, model: str, units: int) -> dict[str, float]:
    """Execute units by a run and by steps that do nothing. Prints and returns the driver's seconds of CPU for each."""
    own = ["--input", f"{folder}/in", "--model", model, "--unit-rows", "2"]
    commands = {
        "a run": ["armo_ray", "score", *own, "--output", f"{folder}/run", "--dtype", "float32"],
        "steps that do nothing": ["jobs.measure.nothing", *own],
    }
    seconds = {}
    for what, command in commands.items():
        started = time.monotonic()
        memory, cpu = measure([sys.executable, "-m", *command], {command[0]: "driver", "": "others"})
        wall = time.monotonic() - started
        seconds[what] = cpu["driver"]
        print(
            f"{units} units executed by {what}: {wall:.0f} s, {1000 * wall / units:.0f} ms per unit; driver "
            f"{1000 * cpu['driver'] / units:.1f} ms of CPU per unit, {memory['driver']:.0f} MiB at its peak",
            flush=True,
        )
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--units", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--execute", type=int, nargs="*", default=[1_000, 5_000])
    parser.add_argument("--nights", type=int, nargs="*", default=[])
    # what a process of its own measures, and in which folder
    parser.add_argument("--only", choices=["plan", "night"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps((plan if args.only == "plan" else night)(args.folder, args.model)))
        return
    for units in args.units:
        with tempfile.TemporaryDirectory() as folder:
            write_shards(Path(folder) / "in", units)
            print(_measured("plan", folder, args.model), flush=True)
    for units in args.nights:
        with tempfile.TemporaryDirectory() as folder:
            write_shards(Path(folder) / "in", 1000)
            first = fill(folder, args.model, units)
            figures = _measured("night", folder, args.model)
            print(f"on {units} units, finished in {first:.1f} s: {figures}", flush=True)
    before: tuple[int, dict[str, float]] | None = None
    for units in args.execute:
        with tempfile.TemporaryDirectory() as folder:
            write_shards(Path(folder) / "in", units)
            seconds = execute(folder, args.model, units)
        if before and units > before[0]:
            for what, total in seconds.items():
                each = 1000 * (total - before[1][what]) / (units - before[0])
                print(
                    f"{each:.1f} ms of the driver's CPU for each unit beyond {before[0]} of {what}",
                    flush=True,
                )
        before = units, seconds


def _measured(what: str, folder: str, model: str) -> str:
    command = [
        sys.executable,
        "-m",
        "jobs.measure.units",
        "--model",
        model,
        "--only",
        what,
        "--folder",
        folder,
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in figures["seconds"].items())
    return f"{figures['units']} units: {times}; {figures['peak_mib']:.0f} MiB at the peak"


if __name__ == "__main__":
    main()
