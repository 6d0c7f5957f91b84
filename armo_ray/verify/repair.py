"""Repairs an output: deletes damaged files, so that `armo-ray score` writes them again."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from armo_ray.storage import commits, lock
from armo_ray.storage.checkpoint import CHECKPOINT
from armo_ray.storage.json_files import unit_of
from armo_ray.storage.records import DamagedError
from armo_ray.storage.store import Store
from armo_ray.verify import output
from armo_ray.verify.output import Examined
from armo_ray.verify.sources import CHANGED, GONE, THERE, UNKNOWN, ColumnsRead, find_states
from armo_ray.verify.unit import Fault

_ADVICE = {
    GONE: "restore it and repair again, or drop its scores with armo-ray score --forget",
    CHANGED: "restore it and repair again, or score it again with armo-ray score --redo",
    UNKNOWN: "repair again when its storage can be reached",
}


class Repaired(NamedTuple):
    """The result of a repair."""

    done: list[str]  # one line per repair
    left: list[str]  # one line per fault that cannot be repaired here
    complete: bool  # whether the output has a manifest


def repair_output(uri: str, columns_read: ColumnsRead) -> Repaired:
    """Delete what is damaged. Raises ConfigError if there is no output, or if a command is writing it."""
    store = Store(uri)
    with suppress(DamagedError):
        commits.read_run(store)
    done = _unlock(store)
    with lock.held(store):
        examined = output.examine(store)
        drop, left = _triage(examined, columns_read)
        done += _repair(store, examined, drop, is_intact=not left)
        if examined.run is None and not commits.list_commits(store):
            store.delete(commits.RUN)
            done.append(f"{commits.RUN}: deleted: nothing is committed")
            left = [fault for fault in left if fault.file != commits.RUN]
        return Repaired(done, [fault.message for fault in left], commits.SUCCESS in store.list_names(""))


def _unlock(store: Store) -> list[str]:
    """Delete a damaged lock. If a command holds it, that command stops when the lock is gone."""
    try:
        lock.read_owner(store)
    except DamagedError:
        store.delete(lock.LOCK)
        return [f"{lock.LOCK}: deleted: it was damaged"]
    return []


def _triage(examined: Examined, columns_read: ColumnsRead) -> tuple[Mapping[str, str], list[Fault]]:
    """The units to score again, with the reason; and the faults that cannot be repaired."""
    faults = [fault for fault in examined.faults if fault.units]
    repairable = {commits.SUCCESS, CHECKPOINT, lock.LOCK}
    left = [f for f in examined.faults if not (f.units or f.stray or f.undone or f.file in repairable)]
    if examined.run is None:
        return {}, left + [
            Fault(f"{fault.message}: not repaired: {commits.RUN} is damaged") for fault in faults
        ]
    if examined.run.made_by is not None:
        advice = f"make the output again with armo-ray {examined.run.made_by.get('command')}"
        return {}, left + [Fault(f"{fault.message}: {advice}") for fault in faults]
    hashes = {unit[:16] for fault in faults for unit in fault.units}
    lost, unreachable = _lost_shards(examined, hashes, columns_read)
    drop: dict[str, str] = {}
    for fault in faults:
        if shards := [lost[unit[:16]] for unit in fault.units if unit[:16] in lost]:
            left.append(Fault(f"{fault.message}: not scored again: {shards[0]}"))
        else:
            drop |= dict.fromkeys(fault.units, fault.message)
    return drop, left + [Fault(line) for line in unreachable]


def _lost_shards(
    examined: Examined, hashes: set[str], columns_read: ColumnsRead
) -> tuple[dict[str, str], list[str]]:
    """Why shards cannot be scored again, by shard hash; and a line for each storage that cannot be reached."""
    states, unreachable = find_states(
        (r for r in examined.records if r.unit[:16] in hashes), examined.run, columns_read
    )
    lost = {
        record.unit[:16]: f"{record.source} is {state}: {_ADVICE[state]}"
        for record in examined.records
        if (state := states.get(record.source, THERE)) != THERE
    }
    return lost, unreachable


def _repair(store: Store, examined: Examined, drop: Mapping[str, str], is_intact: bool) -> Iterator[str]:
    """Delete the checkpoint and the manifest, then commits, then parts. Yields a line per repair."""
    manifest_faults = [fault for fault in examined.faults if fault.file == commits.SUCCESS]
    complete = is_intact and not drop and not any(fault.undone for fault in examined.faults)
    is_checkpoint_wrong = any(fault.file == CHECKPOINT for fault in examined.faults)
    if is_checkpoint_wrong:
        store.delete(CHECKPOINT)
    if drop or (manifest_faults and not complete):
        store.delete(commits.SUCCESS)
        yield f"{commits.SUCCESS}: deleted: the output is not complete"
    for unit, why in drop.items():
        store.delete(f"{commits.COMMITS}/{unit}.json")
        yield f"unit {unit}: to be scored again: {why}"
    yield from _sweep(store, examined, drop)
    if manifest_faults and complete:
        commits.finish(store)
        yield f"{commits.SUCCESS}: written again"
    if is_checkpoint_wrong and complete and examined.run is not None:
        commits.read_log(store, examined.run).write_checkpoint(store, examined.run.fingerprint)
        yield f"{CHECKPOINT}: written again"
    elif is_checkpoint_wrong:
        yield f"{CHECKPOINT}: deleted: the next run writes it again"


def _sweep(store: Store, examined: Examined, drop: Mapping[str, str]) -> Iterator[str]:
    """Delete the parts that no commit names."""
    records = [record for record in examined.records if record.unit not in drop]
    unread = commits.list_commits(store) - {record.unit for record in records}
    for name in output.stray_parts(store, records):
        if _is_inside(store, name) and unit_of(name) not in unread:
            store.delete(name)
            yield f"{name}: deleted: no commit names it"


def _is_inside(store: Store, name: str) -> bool:
    """Whether a file lies in the output, not behind a link to a folder elsewhere."""
    folder, root = (os.path.realpath(path) for path in (os.path.dirname(store.path(name)), store.root))
    return not store.local or folder == root or folder.startswith(f"{root}/")
