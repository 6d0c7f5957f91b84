"""Measure the curation commands against plain DuckDB queries (`curation_queries`) with the same memory and threads.

python -m jobs.measure.curation --candidates 1000000 [--text] [--folder DIR] [--only mine filter] [--rounds 3] [--json]

Writes scores once, or reads those of an earlier measurement in DIR, then runs every command and its query in turn and
prints medians. With --text scores hold their text, as mine then needs, and label adds it to its rows.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from armo_ray.outputs.schema import footer
from jobs.measure import curation_queries as queries
from jobs.measure.synthetic_scores import write_output

MEMORY = "2GB"
ARGUMENTS = {
    "mine": ["--strategy", "best-vs-sigma"],
    "label": ["--temperature", "1"],
    "filter": ["--where", "score >= q0.5"],
    "reweigh": ["--mask", "helpsteer_verbosity"],
    "report": [],
}
UNITS = {"wall": "s", "cpu": "s", "busy": "cores", "peak": "MiB"}


def measure(command: list[str]) -> dict[str, float]:
    """Run a command. Returns its wall and CPU seconds, the cores it kept busy, and its peak resident MiB."""
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = child.stderr.read() if child.stderr else b""
    _, status, used = os.wait4(child.pid, 0)
    wall = time.monotonic() - began
    if status:
        sys.exit(f"{' '.join(command[:6])}: status {os.waitstatus_to_exitcode(status)}\n{errors.decode()}")
    cpu = used.ru_utime + used.ru_stime
    return {"wall": wall, "cpu": cpu, "busy": cpu / wall, "peak": used.ru_maxrss / 1024}


def execute(name: str, folder: Path, text: bool) -> None:
    """Run the plain query of a command; `folder` has the scores, and gets the rows."""
    first = next((folder / "scores" / "scores").rglob("*.parquet"))
    transform = footer(pq.read_schema(first))["reward_transform_matrix"]
    scores, out = f"read_parquet('{folder}/scores/scores/*.parquet')", f"{folder}/{name}"
    sql = {
        "mine": lambda: queries.mine(scores, out),
        "label": lambda: queries.label(scores, out, text),
        "filter": lambda: queries.filtered(scores, out),
        "reweigh": lambda: queries.reweigh(scores, out, transform),
        "report": lambda: queries.report(scores, transform),
    }[name]()
    (folder / name).mkdir()
    with duckdb.connect() as con:
        con.execute(f"SET memory_limit = '{MEMORY}'; SET preserve_insertion_order = false")
        con.execute(f"SET temp_directory = '{out}/spilled'")
        con.execute(sql)


def compare(name: str, folder: Path, text: bool, rounds: int) -> dict[str, list[dict[str, float]]]:
    """What a command and its query cost, in turn."""
    command = [sys.executable, "-m", "armo_ray", name, f"{folder}/scores", *ARGUMENTS[name]]
    command += ["--memory", MEMORY, "--output", f"{folder}/{name}"]
    command += ["--no-text"] if name == "label" and not text else []
    plain = [sys.executable, "-m", "jobs.measure.curation", "--execute", name, "--folder", str(folder)]
    plain += ["--text"] if text else []
    costs: dict[str, list[dict[str, float]]] = {name: [], "query": []}
    for _ in range(rounds):
        for kind, run in ((name, command), ("query", plain)):
            costs[kind].append(measure(run))
            shutil.rmtree(folder / name)
    return costs


def line(name: str, costs: dict[str, list[dict[str, float]]]) -> str:
    ours, plain = (
        {key: statistics.median(one[key] for one in runs) for key in UNITS} for runs in costs.values()
    )
    numbers = "  ".join(f"{key} {ours[key]:7.1f} /{plain[key]:7.1f} {unit}" for key, unit in UNITS.items())
    return f"{name:8} ratio {ours['wall'] / plain['wall']:.2f}  {numbers}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candidates", type=int, default=1_000_000)
    parser.add_argument("--text", action="store_true")
    parser.add_argument("--folder", type=Path, help="keep the scores here for the next measurement")
    parser.add_argument("--only", nargs="+", choices=list(ARGUMENTS), default=list(ARGUMENTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="also print every number")
    parser.add_argument("--execute", choices=list(ARGUMENTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.execute:
        execute(args.execute, args.folder, args.text)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "scores" / "_SUCCESS").exists():
            write_output(folder / "scores", args.candidates, args.text)
        for name in args.only:
            if name == "mine" and not args.text:
                continue
            costs = compare(name, folder, args.text, args.rounds)
            print(line(name, costs), flush=True)
            if args.json:
                print(json.dumps({name: costs}), flush=True)


if __name__ == "__main__":
    main()
