"""The gate between making a night's datasets and publishing them: its conditions, measured."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from armo_ray.nightly.night import Night, Step
from armo_ray.nightly.record import made_parts
from armo_ray.nightly.steps import EMPTY, Done, report_place
from armo_ray.score.status import reject_fraction
from armo_ray.storage.parts import read_content
from armo_ray.storage.records import PartEntry
from armo_ray.storage.store import Store


class Condition(NamedTuple):
    """A condition with its value, None if there is nothing to measure, and its limit; `of` says of what."""

    name: str
    of: str
    value: float | None
    limit: float
    passed: bool

    def __str__(self) -> str:
        value = "nothing to measure" if self.value is None else f"{self.value:.6g}"
        return f"{self.name}: {value} ({self.of}), the limit is {self.limit:.6g}"


def measure(night: Night, done: dict[str, Done]) -> list[Condition]:
    """The conditions of a night whose steps are done."""
    made = {step.name: step for step in night.steps if done[step.name].status != EMPTY}
    empty = [step.name for step in night.steps if step.name not in made]
    return [
        *_rejects(night, done),
        *(_least("min_candidates", f"what [{name}] reads", 0, 1) for name in empty),
        *_drift(night, made.get("report")),
        *_pairs(night, made.get("mine")),
    ]


def _most(name: str, of: str, value: float | None, limit: float) -> Condition:
    return Condition(name, of, value, limit, value is not None and value <= limit)


def _least(name: str, of: str, value: float | None, limit: float) -> Condition:
    return Condition(name, of, value, limit, value is not None and value >= limit)


def _rejects(night: Night, done: dict[str, Done]) -> Iterator[Condition]:
    """By output of score, in candidates or shards as its exit status 3 has it."""
    step = night.step("score")
    for config, totals in zip(
        step.options if step else (), done["score"].totals if step else (), strict=True
    ):
        share, what = reject_fraction(totals)
        limit = night.gate.max_reject_fraction
        limit = config.max_reject_fraction if limit is None else limit
        of = f"{what if share else 'candidates'} of the input, in {' '.join((config.output, *night.partition))}"
        yield _most("max_reject_fraction", of, share, limit)


def _drift(night: Night, step: Step | None) -> Iterator[Condition]:
    """The column that moved most, by each of the report's measures; below what chance gives, nothing moved."""
    if step is None or not step.options[0].against:
        return
    (options,), (place, name) = step.options, report_place(step)
    report = Store(place).read_json(name.removesuffix(".html") + ".json") or {}
    drift: dict[str, Any] = report.get("drift") or {}
    columns = drift.get("columns") or {}
    for kind in ("psi", "ks"):
        asked = getattr(night.gate, f"max_{kind}")
        asked = getattr(options, f"max_{kind}") if asked is None else asked
        limit = max(asked, drift.get(f"chance_{kind}") or 0.0)
        worst = max(columns, key=lambda column: columns[column][kind], default=None)
        value = None if worst is None else float(columns[worst][kind])
        of = f"{worst or 'no scores'}{', against what chance gives' if limit > asked else ''}"
        yield _most(f"max_{kind}", of, value, limit)


def _pairs(night: Night, step: Step | None) -> Iterator[Condition]:
    if step is None:
        return
    (output,), parts, gate = step.writes, made_parts(night, step), night.gate
    if gate.min_pairs is not None:
        yield _least("min_pairs", output, sum(part.rows for part in parts), gate.min_pairs)
    if gate.min_mean_margin is not None:
        yield _least("min_mean_margin", output, _mean_margin(Store(output), parts), gate.min_mean_margin)


def _mean_margin(store: Store, parts: Iterable[PartEntry]) -> float | None:
    """The mean margin of the pairs in these parts; reads one column of them."""
    sums, rows = [], 0
    for part in parts:
        margins = _margins(read_content(store, part), part.path)
        sums.append(math.fsum(margins))
        rows += len(margins)
    return math.fsum(sums) / rows if rows else None


def _margins(content: bytes, path: str) -> list[float]:
    import pyarrow as pa
    import pyarrow.json
    import pyarrow.parquet as pq

    source = pa.BufferReader(content)
    if path.endswith(".parquet"):
        table = pq.read_table(source, columns=["margin"], use_threads=False)
    else:
        schema = pa.schema([("margin", pa.float64())])
        options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        table = pyarrow.json.read_json(source, parse_options=options) if content else schema.empty_table()
    return [float(value) for value in table["margin"].to_pylist()]
