"""The output's transaction log: one identity per output, one record per unit, a manifest once every unit is committed.

Readers trust `_commits/` only, most of it as the checkpoint `_commits.parquet` repeats it. A part without a record was
left by a task that was stopped; when its unit is done again, the part is written under the same name.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.storage import commit_log, parts, stamps
from armo_ray.storage.checkpoint import CHECKPOINT
from armo_ray.storage.commit_log import CommitLog
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.json_files import sealed
from armo_ray.storage.records import CommitRecord, DamagedError, Manifest, RunFile
from armo_ray.storage.retries import describe_error
from armo_ray.storage.store import Store

RUN, COMMITS, SUCCESS = "_run.json", "_commits", "_SUCCESS"
_DATA = re.compile(r"\.(parquet|jsonl|json|csv|gz|zst)$", re.IGNORECASE)
MOST_PARTS = 10_000  # that a manifest lists itself; every command reads it


def open_run(
    store: Store, identity: Mapping[str, Any], details: Mapping[str, Any], write: bool = True
) -> RunFile:
    """Return the content of `_run.json`, and write the file if the output is new. `write=False` never writes.

    Raises ConfigError if the output belongs to a run with another identity, cannot be written, or is damaged.
    """
    new_identity = json.loads(json.dumps(identity))  # as reading it back gives it
    content = sealed({"identity": new_identity, **details, "created_at": now()})
    try:
        run = find_run(store)
        if run is None:
            if store.list_names(COMMITS):
                raise ConfigError(
                    f"output {store.uri}: has commits but no {RUN}: restore that file, or use a new output"
                )
            run = RunFile.from_json(content)
            if write and not store.create(RUN, content):  # another command was faster
                run = find_run(store)
    except OSError as error:
        raise ConfigError(f"output {store.uri}: cannot be written: {describe_error(error)}") from error
    if run is None:
        raise ConfigError(f"output {store.uri}: {RUN} disappeared while it was being read")
    check_identity(store, run.identity, new_identity)
    if missing := sorted(details.keys() - run.to_dict().keys()):
        raise _damaged_run(store, f"it lacks {missing[0]}")
    return run


def find_run(store: Store) -> RunFile | None:
    """The content of `_run.json`, or None if there is no such file. Raises DamagedError if it is damaged."""
    try:
        return RunFile.from_json(store.read(RUN))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _damaged_run(store, str(error)) from error


def read_run(store: Store, needed: Sequence[str] = ()) -> RunFile:
    """The content of `_run.json`.

    Raises ConfigError if there is no such file or it lacks one of `needed`: dotted names such as identity.layout.
    """
    try:
        run = find_run(store)
    except NotADirectoryError:  # on a disk; an object store has no such file
        run = None
    if run is None and _DATA.search(store.uri):
        raise ConfigError(
            f"{store.uri}: a file of data, not an output of armo-ray score or embed: run one of them on it first, and "
            f"give the directory that it writes"
        )
    if run is None:
        raise ConfigError(f"{store.uri}: no {RUN}: not an output of armo-ray score")
    for section, _, name in (path.partition(".") for path in needed):
        if name not in (getattr(run, section) or {}):
            raise _damaged_run(store, f"it lacks {section}.{name}")
    return run


@contextmanager
def reading(store: Store, option: str = "") -> Iterator[None]:
    """Turn an OSError from reading an output into a ConfigError; `option` begins its message."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{option}{store.uri}: cannot be read: {describe_error(error)}") from error


def find_manifest(store: Store, run: RunFile | None = None) -> Manifest | None:
    """The manifest with all parts, or None if the output is not complete.

    Raises DamagedError if it is damaged, of another run, or names other parts than the commits do.
    """
    try:
        manifest = Manifest.from_json(store.read(SUCCESS))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedError(f"{store.uri}/{SUCCESS}: damaged: {error}. {repair_advice(store)}") from error
    if run is not None and manifest.run_fingerprint not in (None, run.fingerprint):
        raise DamagedError(f"{store.uri}/{SUCCESS}: belongs to another run. {repair_advice(store)}")
    if manifest.parts_in is None:
        return manifest
    log = read_log(store, run)
    check_manifest(store, manifest, log)
    return replace(manifest, parts=tuple(log.parts()))


def check_manifest(store: Store, manifest: Manifest, log: CommitLog) -> None:
    """Raises DamagedError if the manifest and the commit records do not list the same parts."""
    if manifest.parts_in is None:
        same = {part.path: part for part in manifest.parts} == {part.path: part for part in log.parts()}
    else:
        same = (manifest.num_parts, manifest.parts_digest) == (log.num_parts, log.parts_digest)
    if not same:
        raise DamagedError(
            f"{store.uri}/{SUCCESS}: does not list the same parts as the commits: armo-ray verify "
            f"{store.uri} names them"
        )


def repair_advice(store: Store) -> str:
    return f"Run armo-ray verify {store.uri} --repair, then the same command again"


def _damaged_run(store: Store, what: str) -> DamagedError:
    advice = "Restore it from a copy, or use a new output"
    return DamagedError(f"{store.uri}/{RUN}: damaged: {what}. {advice}")


def check_identity(store: Store, recorded: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises ConfigError, naming the settings that differ, if these are the identities of two different runs."""
    before, now = _flat(recorded), _flat(new)
    differences = [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if differences:
        committed = len(list_commits(store))
        advice = (
            "Use the same settings, or another output" if committed else f"Delete its {RUN} to start over"
        )
        raise ConfigError(
            f"output {store.uri}, with {committed} units committed, was started by another run: "
            f"{'; '.join(differences)}. {advice}"
        )


def _flat(identity: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings by their dotted names, such as layout.kind."""
    settings: dict[str, Any] = {}
    for name, value in identity.items():
        settings |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return settings


def list_commits(store: Store, shards: Set[str] | None = None) -> set[str]:
    """The ids of the committed units, by default of all; `shards` are hashes of the URIs of some."""
    return stamps.units_in(store, COMMITS, shards)


def read_log(store: Store, run: RunFile | None = None) -> CommitLog:
    """The records of all units. Reads the files of those only that the checkpoint lacks.

    Raises DamagedError if a record is damaged or, if `run` is given, belongs to another run.
    """
    fingerprint = None if run is None else run.fingerprint
    return commit_log.load(store, COMMITS, fingerprint, _reader(store, run))


def _reader(store: Store, run: RunFile | None) -> Callable[[str], CommitRecord]:
    """Reads the record of a unit, and raises DamagedError if it belongs to another run than `run`."""
    fingerprint = None if run is None else run.fingerprint

    def read(unit: str) -> CommitRecord:
        record = read_record(store, unit)
        if run is not None and is_foreign(record, run, fingerprint):
            raise DamagedError(f"{store.uri}/{_name(unit)}: belongs to another run. {repair_advice(store)}")
        return record

    return read


def read_commits(
    store: Store, units: Iterable[str] | None = None, run: RunFile | None = None
) -> list[CommitRecord]:
    """The records of the given units, by default of all, sorted by shard and row.

    Raises DamagedError if a record is damaged or, if `run` is given, belongs to another run.
    """
    records: Iterable[CommitRecord]
    records = read_log(store, run).records() if units is None else in_parallel(_reader(store, run), units)
    return sorted(records, key=lambda record: (record.source, record.first_row, record.unit))


def read_record(store: Store, unit: str) -> CommitRecord:
    """The record of a unit. Raises DamagedError if it is damaged, FileNotFoundError if the unit is not committed."""
    try:
        return CommitRecord.from_json(store.read(_name(unit)), unit)
    except ValueError as error:
        raise DamagedError(f"{store.uri}/{_name(unit)}: damaged: {error}. {repair_advice(store)}") from error


def is_foreign(record: CommitRecord, run: RunFile, fingerprint: str | None) -> bool:
    """Whether a record belongs to another run than `run`, whose fingerprint is given."""
    # an output derived by an earlier version holds records with the fingerprint of the output it came from
    is_own = record.checksum is not None or run.made_by is None
    return is_own and record.run_fingerprint not in (None, fingerprint)


def _name(unit: str) -> str:
    return f"{COMMITS}/{unit}.json"


def find_record(store: Store, unit: str) -> CommitRecord | None:
    """The record of a unit, or None if the unit is not committed. Raises DamagedError if it is damaged."""
    try:
        return read_record(store, unit)
    except FileNotFoundError:
        return None


def commit(store: Store, record: CommitRecord) -> None:
    """Write the record of a unit whose parts have been written.

    Another worker may have committed the unit already. Raises RuntimeError if its counts differ. If both wrote the
    parts, the record is updated to describe the files now there: another device may round the same rows to other bits.
    """
    name = _name(record.unit)
    if store.create(name, replace(record, committed_at=now()).to_json()):
        return
    committed = read_record(store, record.unit)
    check_same(store, committed, record)
    if committed.parts != record.parts:
        current = tuple(parts.as_written(store, part) for part in committed.parts)
        store.write(name, replace(committed, parts=current).to_json())


def check_same(store: Store, committed: CommitRecord, record: CommitRecord) -> None:
    """Raises RuntimeError if two records of a unit have different counts."""
    for key in ("source", "first_row", "num_rows", "candidates", "scored", "rejected"):
        before, after = getattr(committed, key), getattr(record, key)
        if before != after:
            raise RuntimeError(
                f"{store.path(_name(record.unit))}: another run committed {key}={before}, this one has {after}"
            )


def finish(store: Store) -> CommitLog:
    """Write the checkpoint, then the manifest: the totals, and the parts of every commit. Returns the commits.

    Raises RuntimeError if an earlier run, with another input, left a shard unfinished, and DamagedError if a record
    is damaged or belongs to another run.
    """
    run = find_run(store)
    log = read_log(store, run)
    if incomplete := log.unfinished():
        raise RuntimeError(
            f"{store.uri}: an earlier run left {len(incomplete)} shards unfinished, the first is {incomplete[0]}. "
            f"Run again with them in the input, or drop what is committed of them with --forget {incomplete[0]}"
        )
    fingerprint = None if run is None else run.fingerprint
    log.write_checkpoint(store, fingerprint)
    is_long = log.num_parts > MOST_PARTS
    manifest = Manifest(
        totals=log.totals().to_dict(),
        parts=() if is_long else tuple(log.parts()),
        run_fingerprint=fingerprint,
        finished_at=now(),
        parts_in=CHECKPOINT if is_long else None,
        num_parts=log.num_parts if is_long else None,
        parts_digest=log.parts_digest if is_long else None,
    )
    store.write(SUCCESS, manifest.to_json())
    return log


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
