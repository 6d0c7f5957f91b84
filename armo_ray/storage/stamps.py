"""Listings of commit records: the names of their units, and stamps by which a record that was written again is known.

Both cost what a listing costs, and on a disk a stamp costs a look at its file: outputs hold hundreds of thousands.
"""

import os
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from armo_ray.storage.shards import version_of
from armo_ray.storage.store import Store

_SUFFIX = ".json"


class Stamps(NamedTuple):
    """The records that one listing of a folder showed: the ids of their units, and the stamps of their files."""

    units: pa.StringArray
    stamps: pa.StringArray


def units_in(store: Store, folder: str, shards: Set[str] | None = None) -> set[str]:
    """The units that have records in a folder, from one listing; `shards` chooses those of some, by their hashes."""
    if not store.local:
        return _units(store.list_entries(folder), shards)
    with suppress(FileNotFoundError), store.opened(folder) as (_, names):
        return _units(names, shards)
    return set()


def stamps_in(store: Store, folder: str) -> Stamps:
    """The stamps of the records in a folder, from one listing."""
    if not store.local:
        entries = store.list_entries(folder)
        names = _records(entries)
        sizes = [int(entries[name]["size"] or 0) for name in names]
        return _joined(names, sizes, [version_of(entries[name]) for name in names])
    with suppress(FileNotFoundError), store.opened(folder) as (descriptor, listed):
        return _looked_at(descriptor, _records(listed))
    return _joined([], [], [])


def _looked_at(descriptor: int, names: Iterable[str]) -> Stamps:
    """The stamps of files in a folder, in its order, which is the fastest to look them up."""
    kept: list[str] = []
    sizes: list[int] = []
    times: list[int] = []
    for name in names:
        try:
            found = os.stat(name, dir_fd=descriptor)
        except FileNotFoundError:  # deleted since
            continue
        kept.append(name)
        sizes.append(found.st_size)
        times.append(found.st_mtime_ns)
    return _joined(kept, sizes, times)


def _joined(names: Sequence[str], sizes: Sequence[int], versions: Sequence[Any]) -> Stamps:
    units = pc.utf8_slice_codeunits(pa.array(names, pa.string()), 0, -len(_SUFFIX))
    texts = [
        pa.array(values, None if values else pa.string()).cast(pa.string()) for values in (sizes, versions)
    ]
    return Stamps(units, pc.binary_join_element_wise(*texts, "-"))


def _records(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(_SUFFIX) and name[0] != "."]


def _units(names: Iterable[str], shards: Set[str] | None) -> set[str]:
    if shards is not None:
        names = [name for name in names if name[:16] in shards]
    cut = -len(_SUFFIX)
    return {name[:cut] for name in names if name.endswith(_SUFFIX) and name[0] != "."}
