"""The results file of `jobs.measure.gpu`: one JSON line per measurement or event, and goals next to measured values.

An event has a `status`: a stage was started, or it ended as one of ENDS. Any other line is a measurement. Every line
names the device, since the runs that fill one file may get different GPUs.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from armo_ray.formatting.tables import markdown_table, text_table

ENDS = ("done", "error", "skipped", "crashed", "hung", "cut off")
FINAL = ("done", "hung")  # a stage that ended like this is not run again unless it is named
Line = dict[str, Any]


def append(out: Path, stage: str, **facts: Any) -> None:
    """Print a line and store it, after any unfinished line of a killed writer. It is on disk when this returns."""
    line = json.dumps({"stage": stage, **facts}, default=str)
    print(line, flush=True)
    with (out / "results.jsonl").open("a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(out: Path) -> list[Line]:
    """All whole lines so far."""
    file = out / "results.jsonl"
    lines = []
    for line in file.read_text("utf-8").splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue  # its writer was killed
    return lines


def ends(lines: Iterable[Line]) -> dict[str, Line]:
    """The last line about the end of each stage, by its name."""
    return {line["stage"]: line for line in lines if line.get("status") in ENDS}


class Goal(NamedTuple):
    """A goal and what was measured."""

    name: str
    goal: str
    measured: str
    verdict: str


class Speeds:
    """Seconds of contenders by workload, and the ratios that goals are about; None if one was not measured."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines
        self.speeds: dict[tuple[str, str], Line] = {}
        for line in lines:
            if "contender" in line and "work" in line:
                self.speeds.setdefault((line["contender"], line["work"]), {}).update(line)

    def last(self, key: str, **match: Any) -> Any:
        """The last measurement of this name among the lines with these values."""
        values = [x[key] for x in self.lines if key in x and match.items() <= x.items()]
        return values[-1] if values else None

    def each(self, key: str, contender: str) -> list[float]:
        """A measurement of a contender for every workload."""
        return [
            x[key] for (name, _), x in self.speeds.items() if name == contender and x.get(key) is not None
        ]

    def mfu(self, contender: str) -> float | None:
        """Operations per second on pairs over those of a square matrix product."""
        speed, rate = self.speeds.get((contender, "pairs")), self.last("bf16_flops", product="square")
        return speed["flops"] / speed["seconds"] / rate if speed and rate else None

    def ratio(self, slow: str, fast: str, work: str) -> float | None:
        """How many times faster the second contender is."""
        a, b = self.speeds.get((slow, work)), self.speeds.get((fast, work))
        return a["seconds"] / b["seconds"] if a and b else None

    def least_ratio(self, slow: str, fast: str, of_dedup: bool = False) -> float | None:
        """The smallest ratio of all workloads, divided by the deduplication ratio if `of_dedup`."""
        works = {work for _, work in self.speeds}
        ratios = [
            r / (self.speeds[fast, work]["dedup_ratio"] if of_dedup else 1)
            for work in works
            if (r := self.ratio(slow, fast, work)) is not None
        ]
        return min(ratios, default=None)


def goals(lines: Sequence[Line]) -> list[Goal]:
    """Every goal with the measured value."""
    s = Speeds(lines)
    bits = [s.last(key, stage="bits") for key in ("same_bits", "same_bits_shared")]
    large = s.last("seconds", stage="load", cache="warm") if (s.last("gigabytes") or 0) > 10 else None
    return [
        _at_least("MFU without sharing, eager", 0.79, s.mfu("packed")),
        _at_least("MFU without sharing, compiled", 0.83, s.mfu("packed+compile")),
        _at_least("pairs, x padded batches of 8", 2.6, s.ratio("padded-8", "engine", "pairs")),
        _at_least("8 rollouts, x padded batches of 8", 3.2, s.ratio("padded-8", "engine", "rollouts-8")),
        _at_least("sharing, of the deduplication ratio", 0.92, s.least_ratio("packed", "shared", True)),
        _at_least("fp8+compile, x compiled bf16", 1.5, s.least_ratio("engine+compile", "fp8+compile")),
        _at_least(
            "Spearman of fp8+compile with bf16", 0.99, min(s.each("spearman", "fp8+compile"), default=None)
        ),
        _holds("equal bits when shuffled, fixed packs", None if None in bits else all(bits)),
        _at_most("host gap", 0.03, max(s.each("host_gap", "engine"), default=None)),
        _at_most("seconds to load 16 GB, warm", 20, large),
    ]


def _at_least(name: str, goal: float, value: float | None) -> Goal:
    return _judged(name, f">= {goal:g}", value, value is not None and value >= goal)


def _at_most(name: str, goal: float, value: float | None) -> Goal:
    return _judged(name, f"<= {goal:g}", value, value is not None and value <= goal)


def _holds(name: str, value: bool | None) -> Goal:
    return _judged(name, "yes", value, bool(value))


def _judged(name: str, goal: str, value: float | None, met: bool) -> Goal:
    if value is None:
        return Goal(name, goal, "-", "NOT MEASURED")
    text = (
        ("no", "yes")[value] if isinstance(value, bool) else f"{value:.3f}" if value < 1.5 else f"{value:.2f}"
    )
    return Goal(name, goal, text, "MET" if met else "MISSED")


def summary(out: Path, markdown: bool = False) -> str:
    """The device and versions, goals, speeds, and stages that did not end well, for the device with the most lines."""
    lines = read(out)
    devices = Counter(line["device"] for line in lines if "device" in line)
    if not devices:
        return "nothing was measured"
    device = devices.most_common(1)[0][0]
    own = [line for line in lines if line.get("device") == device]
    table: Any = markdown_table if markdown else text_table
    parts = [_head(device, own), table(Goal._fields, goals(own))]
    if (speeds := _speed_table(own))[1]:
        parts.append(table(*speeds))
    if others := [name for name in devices if name != device]:
        parts.append(f"left out: lines measured on {', '.join(others)}")
    failed = [x for x in ends(lines).values() if x["status"] != "done"]
    parts.append("\n".join(f"{x['stage']}: {x['status']} {x.get('reason', '')}".rstrip() for x in failed))
    return "\n\n".join(part for part in parts if part)


def _head(device: str, lines: Sequence[Line]) -> str:
    versions = [x["versions"] for x in lines if "versions" in x]
    known = ", ".join(f"{name} {version}" for name, version in versions[-1].items()) if versions else ""
    dry = "a trial of the script, whose figures mean nothing: " if device == "cpu" else ""
    return f"{dry}{device} ({known or 'versions not recorded'})"


def _speed_table(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Tokens per second, conversations counted whole, of each contender on each workload."""
    speeds = Speeds(lines).speeds
    works = list(dict.fromkeys(work for _, work in speeds))
    rows = [
        [name, *(f"{speeds[name, w]['tokens_per_s']:,.0f}" if (name, w) in speeds else "-" for w in works)]
        for name in dict.fromkeys(name for name, _ in speeds)
    ]
    return ["tokens/s", *works], rows
