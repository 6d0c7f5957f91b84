"""Checks an output: every part against its commit record, every record against the run and the manifest."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import pyarrow as pa

from armo_ray.storage import checkpoint, commits, lock, parts
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.formats import PARQUET, kind_of
from armo_ray.storage.records import CommitRecord, DamagedError, RunFile, Totals
from armo_ray.storage.shards import hash_of
from armo_ray.storage.stamps import stamps_in
from armo_ray.storage.store import Store
from armo_ray.verify.unit import CHECKS, Fault, check_unit


@dataclass(frozen=True)
class Examined:
    """The contents of an output, and its faults."""

    run: RunFile | None  # None if it is damaged
    records: Sequence[CommitRecord]  # that can be read and belong to the run
    faults: Sequence[Fault]


def verify_output(uri: str) -> tuple[dict[str, int], list[str]]:
    """Read a whole output. Returns counts of its units and candidates, and a line for each fault.

    Raises ConfigError if there is no output at all.
    """
    examined = examine(Store(uri))
    return counts_of(examined), [fault.message for fault in examined.faults]


def counts_of(examined: Examined) -> dict[str, int]:
    """The numbers of units, candidates and kept prompts in the records that can be read."""
    totals = Totals.of(examined.records)
    counts = {
        "units": totals.units,
        "candidates": totals.candidates,
        "scored": totals.scored,
        "rejected": totals.num_rejected,
    }
    prompts = [part.rows for record in examined.records for part in record.parts_in(parts.PROMPTS)]
    return counts | ({"hidden states of prompts": sum(prompts)} if prompts else {})


def examine(store: Store) -> Examined:
    """Read and check a whole output. Raises ConfigError if there is none."""
    run, faults = _run(store)
    records, damaged = _records(store, run)
    if run is not None and damaged and not records:  # then _run.json is at fault, not the commits
        unbound = _records(store, None)
        if unbound[0]:
            message = (
                f"{store.uri}/{commits.RUN}: does not belong to the run of the {len(unbound[0])} commits"
            )
            faults.append(Fault(f"{message}: restore it from a copy, or use a new output", file=commits.RUN))
            run, (records, damaged) = None, unbound
    faults += damaged + _lock(store) + _manifest(store, run, records) + _checkpoint(store, run, records)
    for source, units in groupby(records, key=lambda record: record.source):
        faults += _chain(source, list(units))
    for unit_faults in in_parallel(lambda record: check_unit(store, record), records):
        faults += unit_faults
    return Examined(run, records, faults + _strays(store, records))


def _run(store: Store) -> tuple[RunFile | None, list[Fault]]:
    try:
        return commits.read_run(store), []
    except DamagedError as error:
        return None, [Fault(str(error), file=commits.RUN)]


def _lock(store: Store) -> list[Fault]:
    try:
        lock.read_owner(store)
    except DamagedError as error:
        return [Fault(str(error), file=lock.LOCK)]
    return []


def _records(store: Store, run: RunFile | None) -> tuple[list[CommitRecord], list[Fault]]:
    """The valid records, sorted by shard and row, and a fault for each of the others."""
    fingerprint = None if run is None else run.fingerprint

    def read(unit: str) -> CommitRecord | Fault:
        try:
            record = commits.read_record(store, unit)
        except DamagedError as error:
            return Fault(str(error), units=(unit,))
        if run is not None and commits.is_foreign(record, run, fingerprint):
            return Fault(f"unit {unit}: its record belongs to another run", units=(unit,))
        if record.checksum is not None and unit[:16] != hash_of(record.source):
            return Fault(
                f"unit {unit}: the unit is not one of {record.source}, which its record names", units=(unit,)
            )
        return record

    results = in_parallel(read, sorted(commits.list_commits(store)))
    records = [record for record in results if not isinstance(record, Fault)]
    records.sort(key=lambda record: (record.source, record.first_row, record.ordinal))
    return records, [fault for fault in results if isinstance(fault, Fault)]


def _manifest(store: Store, run: RunFile | None, records: Sequence[CommitRecord]) -> list[Fault]:
    try:
        manifest = commits.find_manifest(store, run)
    except DamagedError as error:
        return [Fault(str(error), file=commits.SUCCESS)]
    if manifest is None:
        return [Fault(f"no {commits.SUCCESS}: the run has not finished: run it again", undone=True)]
    wrong: list[str] = []
    lost: list[str] = []
    if (totals := Totals.of(records).to_dict()) != manifest.totals:
        wrong.append(
            f"{commits.SUCCESS}: its totals are {manifest.totals}, but those of the commits are {totals}"
        )
    listed = {part.path: part.to_dict() for part in manifest.parts}
    committed = {part.path: part.to_dict() for record in records for part in record.parts}
    for path in sorted(listed.keys() | committed.keys()):
        if listed.get(path) != committed.get(path):
            line = f"{path}: the manifest has {listed.get(path)}, the commits have {committed.get(path)}"
            (wrong if path in committed else lost).append(line)
    return [Fault(line, file=commits.SUCCESS) for line in wrong] + [Fault(line, undone=True) for line in lost]


def _checkpoint(store: Store, run: RunFile | None, records: Iterable[CommitRecord]) -> list[Fault]:
    """A fault if readers would ignore the checkpoint, or take from it another record than the one in its file.

    Rows of files that were deleted or written again since are no fault: no reader uses them.
    """
    try:
        found = checkpoint.find(store)
        if found is None:
            return []
        if run is not None and found.run_fingerprint != run.fingerprint:
            raise ValueError("belongs to another run")
        of_unit = {record.unit: record for record in records}
        is_current, _ = checkpoint.compared(found, stamps_in(store, commits.COMMITS))
        batches = list(found.batches())
        if found.sums is not None and found.sums != checkpoint.sum_parts(batches):
            raise ValueError("its sums of the parts are not those of its rows")
        rows = pa.concat_tables(batches).filter(is_current)
        held = list(checkpoint.records_of(rows))
        if differs := [record.unit for record in held if of_unit.get(record.unit, record) != record]:
            raise ValueError(
                f"its rows of {len(differs)} units are not their records, the first is {differs[0]}"
            )
        if len({record.unit for record in held}) < len(held):
            raise ValueError("it holds a unit twice")
    except (ValueError, TypeError, pa.ArrowException) as error:  # a damaged file may hold anything
        return [Fault(f"{checkpoint.CHECKPOINT}: {error}", file=checkpoint.CHECKPOINT)]
    return []


def _chain(source: str, units: Sequence[CommitRecord]) -> list[Fault]:
    """The faults in the units of a shard, sorted by row, which must cover each of its rows once."""
    ids = tuple(unit.unit for unit in units)
    faults = []
    if len(versions := sorted({unit.identity for unit in units})) > 1:
        faults.append(
            Fault(f"{source}: its units were read from several versions of it: {', '.join(versions)}", ids)
        )
    if [unit.ordinal for unit in units] != sorted({unit.ordinal for unit in units}):
        faults.append(Fault(f"{source}: its units are not in the order of its rows", ids))
    if any(unit.last for unit in units[:-1]):
        faults.append(Fault(f"{source}: units follow the one that is marked as its last", ids))
    row = 0
    for before, unit in zip((None, *units), units, strict=False):
        if unit.first_row < row and before is not None:
            message = f"{source}: units {before.unit} and {unit.unit} both hold row {unit.first_row}"
            faults.append(Fault(message, ids))
        # line numbers may have gaps: blank lines are not rows
        if unit.first_row > row and (kind_of(source) == PARQUET or before is None):
            message = f"{source}: no unit holds its rows {row} to {unit.first_row - 1}"
            faults.append(Fault(message, undone=True))
        row = unit.first_row + unit.num_rows
    starts = list(accumulate((unit.num_units for unit in units[:-1]), initial=0))
    if [unit.ordinal for unit in units] != starts or not units[-1].last:
        faults.append(Fault(f"{source}: not all of its units are committed", undone=True))
    return faults


def _strays(store: Store, records: Iterable[CommitRecord]) -> list[Fault]:
    """Parts that no commit names: left by a stopped task whose unit was not done again."""
    return [
        Fault(
            f"{store.path(name)}: no commit names it, but readers that use a glob would count its rows: delete it",
            stray=name,
        )
        for name in stray_parts(store, records)
    ]


def stray_parts(store: Store, records: Iterable[CommitRecord]) -> list[str]:
    """The paths in the output of the parts that none of these records names."""
    committed = {part.path for record in records for part in record.parts}
    paths = [path for folder in CHECKS for path in store.find(folder)]
    names = [path.removeprefix(f"{store.root}/") for path in paths]
    return [
        name for name in names if name.endswith(".parquet") and name not in committed and "/." not in name
    ]
