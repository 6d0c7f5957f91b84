"""How fast a run was, and what it cost, from the records of its units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from armo_ray.storage.records import replica_seconds

_BINS = 40
_SLOWEST = 5
_GAP_S = 60.0  # this long without a unit at work means that the run was paused


@dataclass(frozen=True)
class Throughput:
    """Tokens per second in a bin of the active time, which begins at `from_seconds`."""

    from_seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class SlowUnit:
    """A unit with its seconds by step; work_seconds leaves out waiting."""

    unit: str
    source: str
    first_row: int
    num_rows: int
    scored: int
    num_tokens: int
    seconds: dict[str, float]
    work_seconds: float


@dataclass(frozen=True)
class Speed:
    """Times, rates and cost of a run. Tokens count every conversation whole; computed_tokens counts what went
    through the model. `first` and `last` are ISO 8601, seconds are by step, fractions are of 1."""

    first: str
    last: str
    active_seconds: float
    candidates_per_second: float | None
    tokens_per_second: float | None
    tokens: int
    computed_tokens: int
    replicas: int
    seconds: dict[str, float]
    mfu: float | None
    busy: float
    replica_hours: float
    gpus_per_replica: float
    paid_hours: float
    cost_usd: float | None
    throughput: list[Throughput]
    slowest_units: list[SlowUnit]


def speed(
    records: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], price: float | None
) -> Speed | None:
    """None if no model made the output, for example after armo-ray filter, or if its units record no seconds.

    A replica's hours are those in which it loaded the model, packed, ran the model and waited between units.
    """
    timed = [record for record in records if record.get("seconds") and "began" in record]
    if not timed or any("made_by" in run for run in runs):  # copied records are those of the original run
        return None
    began = np.array([record["began"] for record in timed])
    ended = np.array([datetime.fromisoformat(record["committed_at"]).timestamp() for record in timed])
    tokens = np.array([record["num_tokens"] for record in timed], np.float64)
    seconds = {
        step: sum(record["seconds"].get(step, 0.0) for record in timed) for step in timed[0]["seconds"]
    }
    loads = {record["load_seconds"] for record in timed}  # the same in all units of a replica
    hours = (sum(replica_seconds(record["seconds"]) for record in timed) + sum(loads)) / 3600
    # without GPUs, replicas are billed
    gpus = max((run.get("config") or {}).get("gpus_per_replica") or 1 for run in runs)
    times, active = _timeline(began, ended)
    total = {key: sum(record[key] for record in timed) for key in ("num_tokens", "computed_tokens", "scored")}
    return Speed(
        first=datetime.fromtimestamp(float(began.min())).astimezone().isoformat(timespec="seconds"),
        last=datetime.fromtimestamp(float(ended.max())).astimezone().isoformat(timespec="seconds"),
        active_seconds=active,
        candidates_per_second=total["scored"] / active if active else None,
        tokens_per_second=total["num_tokens"] / active if active else None,
        tokens=total["num_tokens"],
        computed_tokens=total["computed_tokens"],
        replicas=len(loads),
        seconds=seconds,
        mfu=_utilization(timed),
        busy=seconds.get("model", 0.0) / max(hours * 3600, 1e-9),
        replica_hours=hours,
        gpus_per_replica=gpus,
        paid_hours=hours * gpus,
        cost_usd=None if price is None else hours * gpus * price,
        throughput=_throughput(times(ended), tokens, active),
        slowest_units=_slowest(timed),
    )


def _utilization(timed: Sequence[Mapping[str, Any]]) -> float | None:
    """Model FLOPs utilization as progress shows it: the fraction of the operations that the devices could do in the
    replicas' time. None if a device's rate is unknown."""
    if not all(record.get("peak_flops") for record in timed):
        return None
    possible = sum(record["peak_flops"] * replica_seconds(record["seconds"]) for record in timed)
    return float(sum(record["flops"] for record in timed) / possible) if possible else None


def _timeline(began: Any, ended: Any) -> tuple[Any, float]:
    """A function from a time to the seconds until then in which some unit was at work, and their total. Pauses between
    runs do not count."""
    edges = [(0.0, float(began.min()))]  # active seconds, at a time
    for start, end in sorted(zip(began.tolist(), ended.tolist(), strict=True)):
        spent, last = edges[-1]
        if start > last + _GAP_S:
            edges.append((spent, start))
            last = start
        if end > last:
            edges.append((spent + end - last, end))
    seconds, moments = zip(*edges, strict=True)
    return lambda at: np.interp(at, moments, seconds), seconds[-1]


def _throughput(at: Any, tokens: Any, active: float) -> list[Throughput]:
    """Tokens per second over the active time, counted when a unit is committed; empty for one or two units."""
    if len(tokens) < 3 or active <= 0:
        return []
    bins = min(_BINS, len(tokens) // 2)
    sums, edges = np.histogram(at, bins, (0.0, active), weights=tokens)
    width = active / bins
    return [Throughput(float(edge), float(total / width)) for edge, total in zip(edges, sums, strict=False)]


def _slowest(timed: Sequence[Mapping[str, Any]]) -> list[SlowUnit]:
    """The units with the most seconds of work; waiting does not count."""

    def work(record: Mapping[str, Any]) -> float:
        return sum(float(value) for step, value in record["seconds"].items() if step != "wait")

    keys = ("unit", "source", "first_row", "num_rows", "scored", "num_tokens", "seconds")
    return [
        SlowUnit(**{key: record[key] for key in keys}, work_seconds=work(record))
        for record in sorted(timed, key=lambda r: (-work(r), r["unit"]))[:_SLOWEST]
    ]
