"""From what was seen to what is told: rates, ratios within a round, and their medians."""

import statistics
from collections.abc import Sequence
from typing import Any

Ratio = tuple[float, float, float]  # median, least and most over the rounds
BASELINE = "padded-8"
STEP = "packed+shared"


def derive(workload: dict[str, Any]) -> dict[str, Any]:
    """The workload with the measures of every contender that finished, and what sharing reached."""
    matmul_flops = statistics.median(workload["matmul_flops"])
    contenders = workload["contenders"]
    by_name = {c["name"]: c for c in contenders if c["error"] is None and c["seconds"]}
    for found in by_name.values():
        found["measures"] = _measures(found, workload, matmul_flops)
        for key, other in (("speedup", BASELINE), ("gain", STEP)):
            if other in by_name:
                found["measures"][key] = ratio(by_name[other]["seconds"], found["seconds"])
    if "packed" in by_name and STEP in by_name:
        reached = ratio(by_name["packed"]["seconds"], by_name[STEP]["seconds"])
        workload["share_of_dedup"] = [r / workload["dedup_ratio"] for r in reached]
    return workload


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """How many times faster the second is: the median of the ratios within each round, with min and max."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def _measures(found: dict[str, Any], workload: dict[str, Any], matmul_flops: float) -> dict[str, Any]:
    seconds = statistics.median(found["seconds"])
    return {
        "seconds": seconds,
        "candidates_per_s": workload["candidates"] / seconds,
        "tokens_per_s": workload["tokens"] / seconds,
        "computed_tokens_per_s": found["computed_tokens"] / seconds,
        "mfu": found["flops"] / seconds / matmul_flops,
        "times_floor": seconds * matmul_flops / workload["floor_flops"],
        "padding": found["computed_tokens"] / workload["tokens"],
        "fill": found["needed_tokens"] / found["slots"],
    }
