"""How fast a run was, and what it cost, by the records of its units."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from armo_ray.storage.records import replica_seconds

_BINS = 40
_SLOWEST = 5
_GAP_S = 60.0  # without a unit at work: the run was not running


def speed(
    records: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], price: float | None
) -> dict[str, Any] | None:
    """None of an output that was not made by a model, as by armo-ray filter, or whose units tell no seconds.

    The hours of a replica are those in which it loaded the model, packed, ran it and waited between units.
    """
    timed = [record for record in records if record.get("seconds") and "began" in record]
    if not timed or any("made_by" in run for run in runs):  # whose records are still those of its origin
        return None
    began = np.array([record["began"] for record in timed])
    ended = np.array([datetime.fromisoformat(record["committed_at"]).timestamp() for record in timed])
    tokens = np.array([record["num_tokens"] for record in timed], np.float64)
    seconds = {
        step: sum(record["seconds"].get(step, 0.0) for record in timed) for step in timed[0]["seconds"]
    }
    loads = {record["load_seconds"] for record in timed}  # of a replica, the same in all of its units
    hours = (sum(replica_seconds(record["seconds"]) for record in timed) + sum(loads)) / 3600
    # without any, replicas are paid
    gpus = max((run.get("config") or {}).get("gpus_per_replica") or 1 for run in runs)
    times, active = _timeline(began, ended)
    total = {key: sum(record[key] for record in timed) for key in ("num_tokens", "computed_tokens", "scored")}
    return {
        "first": datetime.fromtimestamp(float(began.min())).astimezone().isoformat(timespec="seconds"),
        "last": datetime.fromtimestamp(float(ended.max())).astimezone().isoformat(timespec="seconds"),
        "active_seconds": active,
        "candidates_per_second": total["scored"] / active if active else None,
        "tokens_per_second": total["num_tokens"] / active if active else None,
        "tokens": total["num_tokens"],
        "computed_tokens": total["computed_tokens"],
        "replicas": len(loads),
        "seconds": seconds,
        "mfu": _utilization(timed),
        "busy": seconds.get("model", 0.0) / max(hours * 3600, 1e-9),
        "replica_hours": hours,
        "gpus_per_replica": gpus,
        "paid_hours": hours * gpus,
        "cost_usd": None if price is None else hours * gpus * price,
        "throughput": _throughput(times(ended), tokens, active),
        "slowest_units": _slowest(timed),
    }


def _utilization(timed: Sequence[Mapping[str, Any]]) -> float | None:
    """Of the floating-point operations that the devices could do in the replicas' time, as progress tells it; None
    where one is unknown."""
    if not all(record.get("peak_flops") for record in timed):
        return None
    possible = sum(record["peak_flops"] * replica_seconds(record["seconds"]) for record in timed)
    return float(sum(record["flops"] for record in timed) / possible) if possible else None


def _timeline(began: Any, ended: Any) -> tuple[Any, float]:
    """Seconds in which some unit was at work, up to a moment: what lies between two runs does not count."""
    edges = [(0.0, float(began.min()))]  # seconds, at a moment
    for start, end in sorted(zip(began.tolist(), ended.tolist(), strict=True)):
        spent, last = edges[-1]
        if start > last + _GAP_S:
            edges.append((spent, start))
            last = start
        if end > last:
            edges.append((spent + end - last, end))
    seconds, moments = zip(*edges, strict=True)
    return lambda at: np.interp(at, moments, seconds), seconds[-1]


def _throughput(at: Any, tokens: Any, active: float) -> list[dict[str, float]]:
    """Tokens a second over the time at work, counted when a unit was committed; none of a single unit."""
    if len(tokens) < 3 or active <= 0:
        return []
    bins = min(_BINS, len(tokens) // 2)
    sums, edges = np.histogram(at, bins, (0.0, active), weights=tokens)
    width = active / bins
    return [
        {"from_seconds": float(edge), "tokens_per_second": float(total / width)}
        for edge, total in zip(edges, sums, strict=False)
    ]


def _slowest(timed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The units with the most seconds of work; waiting is none."""

    def work(record: Mapping[str, Any]) -> float:
        return sum(float(value) for step, value in record["seconds"].items() if step != "wait")

    keys = ("unit", "source", "first_row", "num_rows", "scored", "num_tokens", "seconds")
    return [
        {**{key: record[key] for key in keys}, "work_seconds": work(record)}
        for record in sorted(timed, key=lambda r: (-work(r), r["unit"]))[:_SLOWEST]
    ]
