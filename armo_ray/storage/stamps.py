"""Listings of commit records: the names of their units, and stamps by which a record that was written again is known.

Both cost what a listing costs, and on a disk a stamp costs a look at its file: outputs hold hundreds of thousands.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from armo_ray.storage.shards import version_of
from armo_ray.storage.store import Store

_SUFFIX = ".json"


def units_in(store: Store, folder: str) -> set[str]:
    """The units that have records in a folder, from one listing."""
    if not store.local:
        return set(_units(store.list_entries(folder)))
    with suppress(FileNotFoundError), store.opened(folder) as (_, names):
        return set(_units(names))
    return set()


def _units(names: Iterable[str]) -> Iterator[str]:
    return (name[: -len(_SUFFIX)] for name in names if name.endswith(_SUFFIX) and name[0] != ".")


class Stamps(NamedTuple):
    """The records that one listing of a folder showed: the ids of their units, and the stamps of their files."""

    units: pa.StringArray
    stamps: pa.StringArray


def stamps_in(store: Store, folder: str) -> Stamps:
    """The stamps of the records in a folder, from one listing."""
    units: list[str] = []
    sizes: list[int] = []
    versions: list[Any] = []
    if not store.local:
        for name, entry in store.list_entries(folder).items():
            if name.endswith(_SUFFIX):
                units.append(name.removesuffix(_SUFFIX))
                sizes.append(int(entry["size"] or 0))
                versions.append(version_of(entry))
    else:
        with suppress(FileNotFoundError), store.opened(folder) as (descriptor, names):
            for unit in _units(names):  # in the order of the folder, which is the fastest
                try:
                    found = os.stat(unit + _SUFFIX, dir_fd=descriptor)
                except FileNotFoundError:  # deleted since
                    continue
                units.append(unit)
                sizes.append(found.st_size)
                versions.append(found.st_mtime_ns)
    stamps = pc.binary_join_element_wise(_texts(sizes), _texts(versions), "-")
    return Stamps(pa.array(units, pa.string()), stamps)


def _texts(values: Sequence[Any]) -> pa.StringArray:
    return pa.array(values, None if values else pa.string()).cast(pa.string())
