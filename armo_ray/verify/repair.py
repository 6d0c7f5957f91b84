"""Repairing an output: damaged files are deleted, so that `armo-ray score` makes them again."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from armo_ray.storage import commits, lock
from armo_ray.storage.json_files import unit_of
from armo_ray.storage.records import DamagedError
from armo_ray.storage.store import Store
from armo_ray.verify import output
from armo_ray.verify.output import Examined, Fault
from armo_ray.verify.sources import CHANGED, GONE, THERE, UNKNOWN, ColumnsRead, find_states

_ADVICE = {
    GONE: "put it back as it was and repair again, or let armo-ray score --forget it",
    CHANGED: "put it back as it was and repair again, or let armo-ray score --redo it",
    UNKNOWN: "repair again when its storage can be reached",
}


class Repaired(NamedTuple):
    """What was repaired of an output, and what was not."""

    done: list[str]
    left: list[str]  # faults that cannot be repaired here
    complete: bool


def repair_output(uri: str, columns_read: ColumnsRead) -> Repaired:
    """Delete what is damaged. Raises ConfigError if there is no output, or a run is writing it."""
    store = Store(uri)
    with suppress(DamagedError):
        commits.read_run(store)
    done = _free(store)
    with lock.held(store):
        examined = output.examine(store)
        drop, left = _divide(examined, columns_read)
        done += _mend(store, examined, drop, whole=not left)
        if examined.run is None and not commits.list_commits(store):
            store.delete(commits.RUN)
            done.append(f"{commits.RUN}: deleted: nothing is committed")
            left = [fault for fault in left if fault.file != commits.RUN]
        return Repaired(done, [fault.message for fault in left], commits.SUCCESS in store.list_names(""))


def _free(store: Store) -> list[str]:
    """Delete a lock that names nobody: the run that holds it, if any, stops when it is gone."""
    try:
        lock.read_owner(store)
    except DamagedError:
        store.delete(lock.LOCK)
        return [f"{lock.LOCK}: deleted: it named no run"]
    return []


def _divide(examined: Examined, columns_read: ColumnsRead) -> tuple[Mapping[str, str], list[Fault]]:
    """The units to score again, and why; and the faults that nothing can be done about."""
    faults = [fault for fault in examined.faults if fault.units]
    mended = {commits.SUCCESS, lock.LOCK}
    left = [f for f in examined.faults if not (f.units or f.stray or f.undone or f.file in mended)]
    if examined.run is None:
        return {}, left + [
            Fault(f"{fault.message}: left as it is: {commits.RUN} is damaged") for fault in faults
        ]
    if examined.run.made_by is not None:
        advice = f"make the output again with armo-ray {examined.run.made_by.get('command')}"
        return {}, left + [Fault(f"{fault.message}: {advice}") for fault in faults]
    hashes = {unit[:16] for fault in faults for unit in fault.units}
    lost, away = _lost_shards(examined, hashes, columns_read)
    drop: dict[str, str] = {}
    for fault in faults:
        if shards := [lost[unit[:16]] for unit in fault.units if unit[:16] in lost]:
            left.append(Fault(f"{fault.message}: not scored again: {shards[0]}"))
        else:
            drop |= dict.fromkeys(fault.units, fault.message)
    return drop, left + [Fault(line) for line in away]


def _lost_shards(
    examined: Examined, hashes: set[str], columns_read: ColumnsRead
) -> tuple[dict[str, str], list[str]]:
    """Why shards, by their hashes, cannot be scored again; and the storages that cannot be asked."""
    states, away = find_states(
        (r for r in examined.records if r.unit[:16] in hashes), examined.run, columns_read
    )
    lost = {
        record.unit[:16]: f"{record.source} is {state}: {_ADVICE[state]}"
        for record in examined.records
        if (state := states.get(record.source, THERE)) != THERE
    }
    return lost, away


def _mend(store: Store, examined: Examined, drop: Mapping[str, str], whole: bool) -> Iterator[str]:
    """Delete first the manifest, then commits, last parts; yields what is done."""
    listed = [fault for fault in examined.faults if fault.file == commits.SUCCESS]
    whole = whole and not drop and not any(fault.undone for fault in examined.faults)
    if drop or (listed and not whole):
        store.delete(commits.SUCCESS)
        yield f"{commits.SUCCESS}: deleted: the output is not complete"
    for unit, why in drop.items():
        store.delete(f"{commits.COMMITS}/{unit}.json")
        yield f"unit {unit}: to be scored again: {why}"
    yield from _sweep(store, examined, drop)
    if listed and whole:
        commits.finish(store)
        yield f"{commits.SUCCESS}: written again"


def _sweep(store: Store, examined: Examined, drop: Mapping[str, str]) -> Iterator[str]:
    """Delete the parts that no commit names."""
    records = [record for record in examined.records if record.unit not in drop]
    unread = commits.list_commits(store) - {record.unit for record in records}
    for name in output.stray_parts(store, records):
        if _is_inside(store, name) and unit_of(name) not in unread:
            store.delete(name)
            yield f"{name}: deleted: no commit names it"


def _is_inside(store: Store, name: str) -> bool:
    """Whether no link leads from the output to a folder elsewhere."""
    folder, root = (os.path.realpath(path) for path in (os.path.dirname(store.path(name)), store.root))
    return not store.local or folder == root or folder.startswith(f"{root}/")
