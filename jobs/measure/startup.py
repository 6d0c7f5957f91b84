"""CPU seconds that a run spends before and beside its work: imports, the model, Ray's own processes (Linux).

python -m jobs.measure.startup [--model DIR] [--runs 3] [--json]

Without --model, a tiny one is written. Prints medians of user and system time; a run's processes are told apart
as in `jobs.measure.scale`. Wall time is left out: it says more about the machine than about the program.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from armo_ray.tiny.armorm import write_tiny_model
from jobs.measure.scale import measure

SAMPLE = Path(__file__).parents[1] / "samples" / "llmbar.jsonl"
# The kind of a process: the first of these that is in one of its command lines.
KINDS = {
    "armo_ray score": "driver",
    "Replica": "replica",
    "(_read)": "reader",
    "(_write)": "writer",
    "ray::": "other workers",
    "default_worker.py": "other workers",
    "gcs_server": "Ray's head",
    "raylet/raylet": "Ray's raylet",
    "dashboard": "Ray's agents",
    "runtime_env": "Ray's agents",
    "log_monitor": "Ray's log monitor",
    "": "other",
}
PARTS = {
    "import ray.data": "import ray.data",
    "import torch": "import torch",
    "import of the driver": "import armo_ray.cli.main, armo_ray.score.pipeline",
    "import of a task": "import armo_ray.score.stages",
    "tokenizer loaded": "from pathlib import Path\nfrom armo_ray.model.chat import Chat\nChat.load(Path({model!r}))",
    "model loaded": "from armo_ray.engine import RewardModel\n"
    "RewardModel.load({model!r}, dtype='float32', device='cpu')",
    "empty Ray": "from armo_ray.cluster.connect import connected\nwith connected(): pass",
}


def cpu_of(code: str) -> float:
    """CPU seconds of a Python process that runs the code, and of all that it waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def one_round(model: str) -> dict[str, float]:
    """CPU seconds of every part alone, and of every kind of process of a run."""
    alone = {name: cpu_of(code.format(model=model)) for name, code in PARTS.items() if name != "empty Ray"}
    _, empty = measure([sys.executable, "-c", PARTS["empty Ray"]], {**KINDS, "armo_ray": "driver"})
    alone["empty Ray"] = sum(empty.values())
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "armo_ray", "score", "--dtype", "float32"]
        command += ["--input", str(SAMPLE), "--output", f"{folder}/out", "--model", model]
        _, run = measure(command, KINDS)
    return alone | {f"run: {kind}": seconds for kind, seconds in run.items()} | {"run": sum(run.values())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a checkpoint directory")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print every number of every round instead")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            write_tiny_model(Path(folder))
        rounds = [one_round(args.model or folder) for _ in range(args.runs)]
    names = list(dict.fromkeys(name for one in rounds for name in one))
    columns = {name: [round(one.get(name, 0.0), 2) for one in rounds] for name in names}
    if args.json:
        print(json.dumps(columns, indent=1))
        return
    for name, seconds in columns.items():
        print(f"{name:24} {statistics.median(seconds):6.2f} s   {min(seconds):.2f} to {max(seconds):.2f}")


if __name__ == "__main__":
    main()
