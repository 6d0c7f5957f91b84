"""Score synthetic shards of several sizes on this machine, and report memory by process and CPU time per candidate.

python -m jobs.measure.scale --model DIR [--candidates 50000 400000]

Samples /proc (Linux only) for the private memory and CPU time of the driver and of every process that it started.
Overhead is the CPU time of all processes except the replica, minus tokenization, plus the replica's packing; the
last two come from the commit records. It is the cost of reading, planning, Ray, writing, committing, and starting
every process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobs.measure.synthetic import write_shards

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
# Maps text in a process's command line to its kind; the first match counts. An idle worker loses its task's name, so
# all command lines that a process ever had are searched.
_KINDS = {
    "armo_ray": "driver",
    "Replica": "replica",
    "(_read)": "reader",
    "(_write)": "writer",
    "": "ray",
}


def measure(command: list[str], kinds: dict[str, str] = _KINDS) -> tuple[dict[str, float], dict[str, float]]:
    """Run a command; returns peak private MiB of the largest process of each kind, and CPU seconds of each kind.

    `kinds`: maps text in a command line to the kind of process; the first match counts, and "" matches all.
    """
    child = subprocess.Popen(command)
    seen: dict[int, tuple[set[str], float, float]] = {}  # names, peak MiB, CPU seconds so far
    while child.poll() is None:
        for pid in descendants(child.pid):
            try:
                name, private, seconds = _read(pid)
            except (OSError, ValueError, IndexError):
                continue  # the process has ended
            names, peak, _ = seen.get(pid, (set(), 0.0, 0.0))
            seen[pid] = (names | {name}, max(peak, private), seconds)
        time.sleep(0.1)
    if child.returncode:
        sys.exit(child.returncode)
    memory: dict[str, float] = {}
    cpu: dict[str, float] = {}
    for names, peak, seconds in seen.values():
        kind = next(kind for part, kind in kinds.items() if any(part in name for name in names))
        memory[kind] = max(memory.get(kind, 0.0), peak)
        cpu[kind] = cpu.get(kind, 0.0) + seconds
    return memory, cpu


def _read(pid: int) -> tuple[str, float, float]:
    """Name, private memory in MiB and CPU seconds of a process."""
    folder = Path(f"/proc/{pid}")
    name = folder.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode()
    _, resident, shared = folder.joinpath("statm").read_text().split()[:3]
    fields = folder.joinpath("stat").read_text().rsplit(")", 1)[1].split()
    return name, (int(resident) - int(shared)) * _PAGE / 2**20, (int(fields[11]) + int(fields[12])) / _TICK


def descendants(root: int) -> list[int]:
    """The process ids of a process and of all that it started, directly or not."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int(entry.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    pids = [root]
    for pid in pids:
        pids += children.get(pid, [])
    return pids


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--candidates", type=int, nargs="+", default=[50_000, 400_000])
    args = parser.parse_args()
    before: tuple[int, float] | None = None
    for count in args.candidates:
        with tempfile.TemporaryDirectory() as folder:
            write_shards(Path(folder) / "in", count)
            command = [sys.executable, "-m", "armo_ray", "score", "--dtype", "float32"]
            command += ["--input", f"{folder}/in", "--output", f"{folder}/out", "--model", args.model]
            started = time.monotonic()
            memory, cpu = measure(command)
            wall = time.monotonic() - started
            records = [json.loads(path.read_text()) for path in Path(folder, "out", "_commits").iterdir()]
        spent = {name: sum(r["seconds"][name] for r in records) for name in records[0]["seconds"]}
        tokens = sum(r["num_tokens"] for r in records)
        overhead = sum(cpu.values()) - cpu["replica"] - spent["tokenize"] + spent["pack"]
        print(f"{count} candidates, {len(records)} units, {tokens} tokens, {wall:.0f} s")
        print("  peak private MiB  " + "  ".join(f"{kind} {mib:.0f}" for kind, mib in sorted(memory.items())))
        print("  CPU s             " + "  ".join(f"{kind} {s:.1f}" for kind, s in sorted(cpu.items())))
        print("  unit s            " + "  ".join(f"{name} {s:.1f}" for name, s in spent.items()))
        print(
            f"  overhead          {1000 * overhead / count:.3f} ms of CPU per candidate, including process startup"
        )
        if before:
            more, spent_more = count - before[0], overhead - before[1]
            print(
                f"                    {1000 * spent_more / more:.3f} ms for each candidate beyond {before[0]}"
            )
        before = count, overhead


if __name__ == "__main__":
    main()
