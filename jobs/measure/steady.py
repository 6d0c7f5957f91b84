"""Measure what share of the bare engine's speed a whole job reaches, and how long its replica idles between packs.

python -m jobs.measure.steady --model DIR --input SHARD... [options of armo-ray score]

Runs `armo-ray score` with one replica, then gives the same units to the engine alone, with as many threads.
Tokens count every conversation whole. The first unit is left out, because the pipeline is not full by then.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from armo_ray.score.config import load_config
from armo_ray.score.job import prepare
from armo_ray.score.replicas import Pool, Replica
from armo_ray.score.stages import read_and_tokenize
from armo_ray.score.stages.unit_block import conversations


def bare_rate(options: dict[str, object], device: str) -> float:
    """The engine's tokens per second on all units of the input except the first, each conversation counted whole."""
    job, spans = prepare(load_config(None, options))
    scorer = Replica(job, Pool(gpus=0, low=1, high=1, device=device))
    units = [conversations(unit) for span in spans for unit in read_and_tokenize(span, job)]
    tokens, seconds = 0, 0.0
    for unit in units[1:]:
        started = time.perf_counter()
        tokens += scorer.model.score(unit).num_tokens
        seconds += time.perf_counter() - started
    return tokens / seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--input", nargs="+", required=True)
    args, more = parser.parse_known_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "armo_ray", "score", "--model", args.model, "--replicas", "1"]
        command += ["--input", *args.input, "--output", f"{folder}/out", *more]
        started = time.time()
        subprocess.run(command, check=True)
        records = [json.loads(path.read_text()) for path in Path(folder, "out", "_commits").iterdir()]
        if len(records) < 2:
            sys.exit("a single unit has no steady state: give more input, or a smaller --unit-rows")
        config = json.loads(Path(folder, "out", "_run.json").read_text())["config"]
        bare = bare_rate({**config, "output": f"{folder}/bare"}, device)
    first, *rest = sorted(records, key=lambda r: r["began"])
    spent = {name: sum(r["seconds"][name] for r in rest) for name in ("model", "pack", "wait")}
    rate = sum(r["num_tokens"] for r in rest) / sum(spent.values())
    print(f"{len(records)} units; first pack {first['began'] - started:.1f} s after the start of the command")
    print(f"including {first['load_seconds']:.1f} s to load the model")
    print("replica s   " + "  ".join(f"{name} {seconds:.2f}" for name, seconds in spent.items()))
    print(
        f"idle        {1 - spent['model'] / sum(spent.values()):.1%} of the time between first and last pack"
    )
    print(f"tokens/s    {rate:.0f} in the job, {bare:.0f} in the engine alone: {rate / bare:.1%}")


if __name__ == "__main__":
    main()
