"""Checks a dataset of mine or label: its manifest, its increments, and the parts that they list."""

import json
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray.errors import ConfigError
from armo_ray.outputs import increments
from armo_ray.outputs.dataset import names_in, own_files, parts_of
from armo_ray.storage import commits, lock
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.parts import DATA, read_content
from armo_ray.storage.records import DamagedError, PartEntry
from armo_ray.storage.store import Store


def is_dataset(store: Store) -> bool:
    """Whether an output was made by mine or label: it has parts of data and no run of a model."""
    if commits.RUN in store.list_names(""):
        return False
    with suppress(DamagedError, NotADirectoryError):
        if any(part.is_in(DATA) for part in parts_of(store) or ()):
            return True
    with suppress(NotADirectoryError):
        return bool(store.find(DATA) or store.list_names(increments.FOLDER))
    return False


def verify_dataset(store: Store) -> tuple[dict[str, int], list[str]]:
    """Read a whole dataset. Returns counts of its parts and rows, and a line for each fault.

    Raises ConfigError if a command is writing it.
    """
    try:
        if (owner := lock.read_owner(store)) is not None:
            raise ConfigError(
                f"{store.uri}: armo-ray {owner['command']} is writing it, or was killed: run that first"
            )
        listed = parts_of(store)
        made = increments.read_increments(store)
    except DamagedError as error:
        return {}, [str(error)]
    if listed is None:
        return {}, [f"no {commits.SUCCESS}: the dataset is not finished: run the same command again"]
    faults = [fault for fault in in_parallel(lambda part: _fault(store, part), listed) if fault]
    if made and listed != increments.Growing(store, made).parts:
        faults.append(
            f"{commits.SUCCESS}: its parts are not those of its increments: run the same command again"
        )
    if not made:  # the next increment deletes what a dataset that grows does not need any more
        known = {part.path for part in listed}
        faults += [
            f"{name}: not in the manifest, but readers that use a glob would count its rows: delete it"
            for name in own_files(names_in(store))
            if name.startswith(f"{DATA}/") and name not in known
        ]
    return {"parts": len(listed), "rows": sum(part.rows for part in listed)}, faults


def _fault(store: Store, part: PartEntry) -> str | None:
    """What is wrong with a part, or None."""
    try:
        rows = _num_rows(read_content(store, part), part.path)
    except RuntimeError as error:
        return str(error).removesuffix(". Check it with armo-ray verify")
    except (OSError, ValueError, pa.ArrowException) as error:
        return f"{part.path}: cannot be read: {error}"
    return None if rows == part.rows else f"{part.path}: {rows} rows, the manifest says {part.rows}"


def _num_rows(content: bytes, path: str) -> int:
    if path.endswith(".jsonl"):
        return sum(1 for line in content.splitlines() if json.loads(line))
    rows: int = pq.read_table(pa.BufferReader(content), use_threads=False).num_rows
    return rows
