"""Checks a dataset of mine or label: its manifest, its increments, and the parts that they list."""

import json
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray.outputs import increments
from armo_ray.outputs.dataset import names_in, parts_of
from armo_ray.storage import commits
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.parts import DATA, read_content
from armo_ray.storage.records import DamagedError, PartEntry
from armo_ray.storage.store import Store


def is_dataset(store: Store) -> bool:
    """Whether an output was made by mine or label: it has a manifest or increments, and no run of a model."""
    names = store.list_names("")
    if commits.RUN in names or commits.SUCCESS in names:
        return commits.RUN not in names
    with suppress(NotADirectoryError):
        return bool(store.list_names(increments.FOLDER))
    return False


def verify_dataset(store: Store) -> tuple[dict[str, int], list[str]]:
    """Read a whole dataset. Returns counts of its parts and rows, and a line for each fault."""
    try:
        listed = parts_of(store)
        made = increments.read_increments(store)
    except DamagedError as error:
        return {}, [str(error)]
    if listed is None:
        return {}, [f"no {commits.SUCCESS}: the dataset is not finished: run the same command again"]
    faults = [fault for fault in in_parallel(lambda part: _fault(store, part), listed) if fault]
    growing = increments.Growing(store, made)
    if made and listed != growing.parts:
        faults.append(
            f"{commits.SUCCESS}: its parts are not those of its increments: run the same command again"
        )
    kept = {part.path for part in listed} | (growing.kept() if made else set())
    there = [name for name in names_in(store) if name.startswith(f"{DATA}/")]
    faults += [
        f"{name}: not in the manifest, but readers that use a glob would count its rows: delete it"
        for name in there
        if name not in kept
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
