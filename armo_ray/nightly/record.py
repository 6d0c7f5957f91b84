"""What a night has done: a file beside its pages, from which the same command goes on, and what its outputs hold."""

import json
from collections.abc import Sequence
from typing import Any

from armo_ray.curate.options import MineOptions
from armo_ray.nightly.night import Night, Step
from armo_ray.outputs.dataset import parts_of
from armo_ray.outputs.increments import rows_of_date
from armo_ray.outputs.partitions import in_partitions, parse_partitions
from armo_ray.storage.json_files import digest_of, to_json
from armo_ray.storage.records import PartEntry
from armo_ray.storage.store import Store

NAME = "progress.json"
# where a step works, which changes no row
_RUNNING = {"memory", "threads", "spill", "engine", "task_rows"}


class Record:
    """The steps that a night began, each with what it was made of, written before a dataset is begun."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.steps: dict[str, dict[str, Any]] = (store.read_json(NAME) or {}).get("steps", {})

    def write(self, step: str, **values: Any) -> None:
        self.steps[step] = self.steps.get(step, {}) | values
        self.store.write(NAME, to_json({"steps": self.steps}))

    def value(self, step: str, name: str) -> Any:
        """What is recorded of a step, or None."""
        return self.steps.get(step, {}).get(name)


def origin_of(step: Step) -> str | None:
    """A digest of a step's options and of all that it reads; None if one of its inputs is not complete."""
    from armo_ray.curate import mine

    inputs: dict[str, list[Any]] = {}
    partitions = parse_partitions(step.options[0].partition)
    for place in step.reads:
        parts = parts_of(Store(place))
        if parts is None:
            return None
        inputs[place] = sorted(
            [part.path, part.rows, part.bytes, part.digest or ""]
            for part in parts
            if in_partitions(part.path, partitions)
        )
    options = [
        {k: v for k, v in one.model_dump(mode="json").items() if k not in _RUNNING} for one in step.options
    ]
    mined = [
        one for one in step.options if isinstance(one, MineOptions) and (one.exclude or one.decontaminate)
    ]
    content = [step.name, options, inputs, *map(mine.states, mined)]
    return digest_of(json.dumps(content, sort_keys=True).encode())


def made_parts(night: Night, step: Step) -> Sequence[PartEntry]:
    """The parts of pairs or labels with rows that this night made: all, or those of its increments."""
    (output,) = step.writes
    store = Store(output)
    return rows_of_date(store, night.date) if step.appends else parts_of(store) or ()
