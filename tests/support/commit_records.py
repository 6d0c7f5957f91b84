"""Commit records of units that nobody scored."""

from typing import Any

from armo_ray.score.passes import Committed
from armo_ray.storage.records import CommitRecord, ForwardPasses, PartEntry, Timing

UNIT = "0" * 32


def commit_record(unit: str = UNIT, **changes: Any) -> CommitRecord:
    """The record of a unit of five rows and ten candidates, two of them rejected."""
    given: dict[str, Any] = {
        "source": "/in/a.jsonl",
        "identity": "100-1",
        "first_row": 0,
        "num_rows": 5,
        "ordinal": 0,
        "last": True,
        "candidates": 10,
        "scored": 8,
        "rejected": {"too_long": 2},
        "num_tokens": 100,
        "computed_tokens": 80,
        "parts": (PartEntry(f"scores/part-{unit}.parquet", 8, 1000),),
        **changes,
    }
    return CommitRecord(unit=unit, **given)


def committed(peak_flops: float | None = 100.0, **changes: Any) -> Committed:
    """A unit that took a replica 10 seconds, on a device of 100 operations a second."""
    seconds = {"read": 1.0, "tokenize": 1.0, "wait": 1.0, "pack": 1.0, "model": 8.0, "write": 0.5}
    passes = ForwardPasses(
        num_packs=1,
        packed_tokens=1800,
        pack_capacity=2400,
        flops=300,
        peak_flops=peak_flops,
        token_budget=1200,
    )
    given = {"num_tokens": 3000, "computed_tokens": 2000, **changes}
    timing = Timing(seconds, began=5.0, load_seconds=1.0)
    return Committed(commit_record(timing=timing, passes=passes, **given), source_bytes=250, host="node-1")
