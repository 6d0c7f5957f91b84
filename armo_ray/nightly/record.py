"""What a night has done: a file beside its pages, from which the same command goes on, and what its outputs hold."""

import json
from collections.abc import Mapping, Sequence, Set
from typing import Any

from armo_ray.nightly.night import RUNNING, Night, Step
from armo_ray.outputs.dataset import parts_of
from armo_ray.outputs.increments import increments_of_date, parts_of_date
from armo_ray.outputs.partitions import in_partitions, parse_partitions
from armo_ray.storage.json_files import digest_of, to_json
from armo_ray.storage.records import PartEntry
from armo_ray.storage.store import Store

NAME = "progress.json"


class Record:
    """The steps that a night began, each with what it was made of, written before a dataset is begun."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.steps: dict[str, dict[str, Any]] = (store.read_json(NAME) or {}).get("steps", {})

    @property
    def place(self) -> str:
        return f"{self.store.uri}/{NAME}"

    def write(self, step: str, **values: Any) -> None:
        self.steps[step] = self.steps.get(step, {}) | values
        self.store.write(NAME, to_json({"steps": self.steps}))

    def value(self, step: str, name: str) -> Any:
        """What is recorded of a step, or None."""
        return self.steps.get(step, {}).get(name)


def inputs_of(step: Step, not_made: Set[str] = frozenset()) -> dict[str, list[PartEntry] | None]:
    """The parts that a step reads, by output; None of an output that is not complete. Without some outputs."""
    partitions = parse_partitions(step.options[0].partition)
    inputs: dict[str, list[PartEntry] | None] = {}
    for place in (place for place in step.reads if place.rstrip("/") not in not_made):
        parts = parts_of(Store(place))
        inputs[place] = parts and [part for part in parts if in_partitions(part.path, partitions)]
    return inputs


def origin_of(step: Step, inputs: Mapping[str, Sequence[PartEntry] | None]) -> str | None:
    """A digest of a step's options and of the parts that it reads; None if one of its inputs is not complete."""
    listed: dict[str, list[Any]] = {}
    for place, parts in inputs.items():
        if parts is None:
            return None
        listed[place] = sorted([part.path, part.rows, part.bytes, part.digest or ""] for part in parts)
    options = [
        {k: v for k, v in one.model_dump(mode="json").items() if k not in RUNNING} for one in step.options
    ]
    return digest_of(json.dumps([step.name, options, listed], sort_keys=True).encode())


def exclusions_of(step: Step) -> dict[str, str] | None:
    """Digests of the files and datasets that decide which prompts a step leaves out; None if there are none."""
    (options,) = step.options
    if step.name != "mine" or not (options.exclude or options.decontaminate):
        return None
    from armo_ray.curate import mine

    return mine.exclusions(options)


def made_parts(night: Night, step: Step) -> Sequence[PartEntry]:
    """The parts of pairs or labels with rows that this night made: all, or those of its increments."""
    (output,) = step.writes
    store = Store(output)
    return parts_of_date(store, night.date) if step.appends else parts_of(store) or ()


def made_of(night: Night, step: Step) -> list[Any]:
    """What this night made of pairs or labels, to tell from anything else: parts or, if they grow, increments."""
    store = Store(step.writes[0])
    if step.appends:
        return [store.uri, increments_of_date(store, night.date)]
    return [store.uri, [[part.path, part.digest or part.bytes] for part in parts_of(store) or ()]]
