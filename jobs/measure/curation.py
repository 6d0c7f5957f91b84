"""Measure the curation commands against plain DuckDB queries (`curation_queries`) with the same memory and threads.

python -m jobs.measure.curation --candidates 1000000 [--text] [--folder DIR] [--only mine filter] [--rounds 3] [--json]
python -m jobs.measure.curation --candidates 1000000 --text --ray

Writes scores once, or reads those of an earlier measurement in DIR, then runs every command and its query in turn and
prints medians. With --text scores hold their text, as mine then needs, and label adds it to its rows.

With --ray it measures the commands with `--engine ray`, on a cluster of four nodes of one CPU that it starts, against
`--engine duckdb`, and compares the rows. CPU seconds are then of all processes of the machine, which should be quiet.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import psutil
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
ON_RAY = ["mine", "label", "filter", "reweigh"]
UNITS = {"wall": "s", "cpu": "s", "busy": "cores", "peak": "MiB", "machine": "CPU s"}


def measure(command: list[str]) -> dict[str, float]:
    """Run a command.

    Returns its wall and CPU seconds, the cores it kept busy, its peak resident MiB, and the CPU seconds of the machine.
    """
    began, machine = time.monotonic(), _machine_seconds()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = child.stderr.read() if child.stderr else b""
    _, status, used = os.wait4(child.pid, 0)
    wall = time.monotonic() - began
    if status:
        sys.exit(f"{' '.join(command[:6])}: status {os.waitstatus_to_exitcode(status)}\n{errors.decode()}")
    cpu = used.ru_utime + used.ru_stime
    machine = _machine_seconds() - machine
    return {
        "wall": wall,
        "cpu": cpu,
        "busy": cpu / wall,
        "peak": used.ru_maxrss / 1024,
        "machine": machine,
    }


def _machine_seconds() -> float:
    """The CPU seconds of all processes since the machine started."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


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


def compare(
    name: str, folder: Path, text: bool, rounds: int, alone: bool
) -> dict[str, list[dict[str, float]]]:
    """What a command and, unless it is to be measured alone, its query cost, in turn."""
    plain = [sys.executable, "-m", "jobs.measure.curation", "--execute", name, "--folder", str(folder)]
    plain += ["--text"] if text else []
    runs = {name: command_of(name, folder, text)} | ({} if alone else {"query": plain})
    costs: dict[str, list[dict[str, float]]] = {kind: [] for kind in runs}
    for _ in range(rounds):
        for kind, run in runs.items():
            costs[kind].append(measure(run))
            shutil.rmtree(folder / name)
    return costs


def command_of(name: str, folder: Path, text: bool) -> list[str]:
    command = [sys.executable, "-m", "armo_ray", name, f"{folder}/scores", *ARGUMENTS[name]]
    command += ["--memory", MEMORY, "--output", f"{folder}/{name}"]
    return command + (["--no-text"] if name == "label" and not text else [])


def compare_engines(name: str, folder: Path, text: bool, rounds: int) -> dict[str, list[dict[str, float]]]:
    """What a command costs with each engine, in turn. Exits if the rows differ."""
    costs: dict[str, list[dict[str, float]]] = {"ray": [], "duckdb": []}
    rows = set()
    for _ in range(rounds):
        for engine in costs:
            costs[engine].append(measure([*command_of(name, folder, text), "--engine", engine]))
            rows.add(rows_digest(folder / name))
            shutil.rmtree(folder / name)
    if len(rows) > 1:
        sys.exit(f"{name}: the engines wrote different rows")
    return costs


def rows_digest(output: Path) -> str:
    """A digest of all rows of an output and their places."""
    rows = f"""SELECT sum(hash(rows)::HUGEINT) FROM (
        SELECT * REPLACE (replace(filename, '{output}', '') AS filename), file_row_number
        FROM read_parquet('{output}/**/part-*.parquet', filename = true, hive_partitioning = false)) rows"""
    return str(duckdb.execute(rows).fetchall())


@contextlib.contextmanager
def four_nodes() -> Iterator[None]:
    """A Ray cluster of four nodes of one CPU on this machine, which commands join."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(3):
            cluster.add_node(num_cpus=1)
        os.environ["RAY_ADDRESS"] = cluster.address
        yield
    finally:
        cluster.shutdown()


def line(name: str, costs: dict[str, list[dict[str, float]]]) -> str:
    ours, *others = (
        {key: statistics.median(one[key] for one in runs) for key in UNITS} for runs in costs.values()
    )
    if not others:
        return f"{name:8} " + "  ".join(f"{key} {ours[key]:.1f} {unit}" for key, unit in UNITS.items())
    (plain,) = others
    numbers = "  ".join(f"{key} {ours[key]:7.1f} /{plain[key]:7.1f} {unit}" for key, unit in UNITS.items())
    of = "machine" if "ray" in costs else "wall"
    return f"{name:8} ratio {ours[of] / plain[of]:.2f}  {numbers}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candidates", type=int, default=1_000_000)
    parser.add_argument("--text", action="store_true")
    parser.add_argument("--words", type=int, default=10, help="of the shortest response (default: 10)")
    parser.add_argument("--folder", type=Path, help="keep the scores here for the next measurement")
    parser.add_argument("--only", nargs="+", choices=list(ARGUMENTS), default=list(ARGUMENTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="leave the queries out")
    parser.add_argument("--ray", action="store_true", help="compare the engines instead")
    parser.add_argument("--json", action="store_true", help="also print every number")
    parser.add_argument("--execute", choices=list(ARGUMENTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.execute:
        execute(args.execute, args.folder, args.text)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "scores" / "_SUCCESS").exists():
            write_output(folder / "scores", args.candidates, args.text, words=args.words)
        with four_nodes() if args.ray else contextlib.nullcontext():
            for name in args.only:
                if (name == "mine" and not args.text) or (args.ray and name not in ON_RAY):
                    continue
                if args.ray:
                    costs = compare_engines(name, folder, args.text, args.rounds)
                else:
                    costs = compare(name, folder, args.text, args.rounds, args.alone)
                print(line(name, costs), flush=True)
                if args.json:
                    print(json.dumps({name: costs}), flush=True)


if __name__ == "__main__":
    main()
