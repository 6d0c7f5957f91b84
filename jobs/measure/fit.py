"""Measure what the sums of a fit cost beside their matrix products alone, and what a fit from them costs.

python -m jobs.measure.fit [--rows 1000000] [--size 1024] [--no-ridge] [--json]

Random hidden states, whose making is not counted, are added in blocks as large as a unit. Some rows lack labels, in
three ways, and their prompts fall into five folds. After every block, the same number of rows in float64 is multiplied
alone. Times are CPU seconds of all threads, since other work disturbs them less.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from armo_ray.fitting.ridge import ridge
from armo_ray.fitting.statistics import ROWS, Floats, Hidden, Statistics, accumulate, empty, flush

BLOCK = 2048  # rows of a unit
NAMES = ("helpful", "correct", "safe", "verbose")
MASKS = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]], bool)
LARGE = (100_000_000, 4096)  # rows and hidden units that the times are projected to


def main() -> None:
    """Print the times and the peak memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=1024, help="hidden units")
    parser.add_argument(
        "--no-ridge", action="store_true", help="leave out the fit, which takes H^3 operations"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    figures = measure(arguments.rows, arguments.size, not arguments.no_ridge)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        print(*(f"{name:<32} {value:,.5g}" for name, value in figures.items()), sep="\n")


def measure(rows: int, size: int, with_ridge: bool) -> dict[str, float]:
    """CPU seconds, memory, and a projection to a large fit."""
    rng = np.random.default_rng(0)
    stats, weights = empty(NAMES, size), rng.standard_normal((size, len(NAMES))) / np.sqrt(size)
    pool = rng.standard_normal((2 * BLOCK, size)).astype(np.float32) + 3.0
    product, operand = np.empty((size, size)), pool[:ROWS].astype(np.float64)
    sums = alone = 0.0
    for begin in range(0, rows, BLOCK):
        count = min(BLOCK, rows - begin)
        block = _block(rng, pool, weights, count)
        sums += cpu_seconds(lambda block=block: accumulate(stats, *block))  # type: ignore[misc]
        x = operand[:count]
        alone += cpu_seconds(lambda x=x: np.matmul(x.T, x, out=product))  # type: ignore[misc]
    sums += cpu_seconds(lambda: flush(stats))
    before = peak_mib()
    fit = cpu_seconds(lambda: ridge(stats)) if with_ridge else float("nan")
    return {
        "rows": rows,
        "hidden units": size,
        "groups": len(stats.groups),
        "sums, CPU s": sums,
        "products alone, CPU s": alone,
        "ratio": sums / alone,
        "GFLOP/s of the products": 2 * rows * size**2 / alone / 1e9,
        "ridge, CPU s": fit,
        "peak of the sums, MiB": before,
        "peak with ridge, MiB": peak_mib(),
        "groups and buffers, MiB": memory_mib(stats),
        f"{LARGE[0]:.0e} rows of {LARGE[1]}, CPU hours": sums
        * LARGE[0]
        / rows
        * (LARGE[1] / size) ** 2
        / 3600,
    }


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of all threads of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def peak_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_mib(stats: Statistics) -> float:
    """What the statistics' groups and the shared buffers may hold, by their shapes."""
    group = 8 * stats.size**2 + 4 * ROWS * stats.size
    return (len(stats.groups) * group + 8 * stats.size**2 + 8 * ROWS * stats.size) / 2**20


def _block(
    rng: np.random.Generator, pool: Hidden, weights: Floats, count: int
) -> tuple[Hidden, Floats, np.ndarray[Any, np.dtype[np.int64]]]:
    """Hidden states, labels and folds of some rows."""
    last = pool[rng.integers(0, len(pool), count)] * rng.uniform(0.9, 1.1, (count, 1)).astype(np.float32)
    labels = last @ weights + rng.standard_normal((count, len(NAMES)))
    labels[~MASKS[rng.integers(0, len(MASKS), count)]] = np.nan
    return last, labels, rng.integers(0, 5, count)


if __name__ == "__main__":
    main()
