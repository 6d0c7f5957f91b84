"""Measure what many units cost the driver: planning, finding what a resumed run has left, finishing, executing.

python -m jobs.measure.units --model DIR [--units 1000 10000 100000] [--execute 1000 5000]

Units are as small as possible: two candidates. Each measurement has a process of its own; memory is its peak.
"""

import argparse
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

from armo_ray.score.config import load_config
from armo_ray.score.job import prepare
from armo_ray.storage import commits, resume
from armo_ray.storage.json_files import to_json
from armo_ray.storage.records import CommitRecord, PartEntry
from armo_ray.storage.store import Store
from jobs.measure.scale import measure

UNITS_A_SHARD = 1000


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
    options = {"input": [f"{folder}/in"], "output": f"{folder}/out", "model": model, "unit_rows": 2}
    started = time.perf_counter()
    job, spans = prepare(load_config(None, options))
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


def execute(folder: str, model: str, units: int) -> None:
    """Execute a run, and print the time and memory that the driver needs per unit."""
    command = [sys.executable, "-m", "armo_ray", "score", "--dtype", "float32", "--unit-rows", "2"]
    command += ["--input", f"{folder}/in", "--output", f"{folder}/run", "--model", model]
    started = time.monotonic()
    memory, cpu = measure(command)
    wall = time.monotonic() - started
    print(
        f"{units} units executed: {wall:.0f} s, {1000 * wall / units:.0f} ms per unit; driver "
        f"{1000 * cpu['driver'] / units:.1f} ms of CPU per unit, {memory['driver']:.0f} MiB at its peak"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--units", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--execute", type=int, nargs="*", default=[1_000, 5_000])
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the folder whose planning this process measures
    args = parser.parse_args()
    if args.only:
        print(json.dumps(plan(args.only, args.model)))
        return
    for units in args.units:
        with tempfile.TemporaryDirectory() as folder:
            write_shards(Path(folder) / "in", units)
            command = [sys.executable, "-m", "jobs.measure.units", "--model", args.model, "--only", folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in figures["seconds"].items())
        print(f"{figures['units']} units: {times}; {figures['peak_mib']:.0f} MiB at the peak", flush=True)
    for units in args.execute:
        with tempfile.TemporaryDirectory() as folder:
            write_shards(Path(folder) / "in", units)
            execute(folder, args.model, units)


if __name__ == "__main__":
    main()
