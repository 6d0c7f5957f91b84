"""The output's transaction log: one identity per output, one record per unit, a manifest when all is there.

A reader trusts `_commits/` only: parts without a record are the remains of a stopped task and are written
again under the same name.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.storage import parts
from armo_ray.storage import records as checked
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.records import DamagedError
from armo_ray.storage.retries import explain
from armo_ray.storage.store import Store

RUN, COMMITS, SUCCESS = "_run.json", "_commits", "_SUCCESS"
_COUNTED = (
    "unit",
    "ordinal",
    "last",
    "num_rows",
    "parts",
    "candidates",
    "scored",
    "rejected",
    "num_tokens",
    "computed_tokens",
)


def open_run(
    store: Store, identity: Mapping[str, Any], details: Mapping[str, Any], write: bool = True
) -> dict[str, Any]:
    """The content of `_run.json`, written now where the output is new; without `write`, what would be written.

    Raises ConfigError where the output belongs to a run of another identity, cannot be written, or is damaged.
    """
    asked = json.loads(json.dumps(identity))  # as it is read back
    content = sealed({"identity": asked, **details, "created_at": now()})
    try:
        found = find_run(store)
        if found is None:
            if store.list_names(COMMITS):
                raise ConfigError(
                    f"output {store.uri}: has commits but lost its {RUN}: restore it, or use a new output"
                )
            created = not write or store.create(RUN, content)
            found = json.loads(content) if created else find_run(store)
    except OSError as error:
        raise ConfigError(f"output {store.uri}: cannot be written: {explain(error)}") from error
    if found is None:
        raise ConfigError(f"output {store.uri}: {RUN} vanished while it was read")
    check_identity(store, found["identity"], asked)
    if missing := sorted(details.keys() - found.keys()):
        raise _damaged_run(store, f"it lacks {missing[0]}")
    return found


def fingerprint_of(identity: Mapping[str, Any]) -> str:
    """32 hex digits of what rows, columns and units of a run depend on."""
    return checked.digest_of(json.dumps(identity, sort_keys=True).encode())


def find_run(store: Store) -> dict[str, Any] | None:
    """The content of `_run.json`, None where there is none. Raises DamagedError."""
    try:
        return checked.parse(store.read(RUN), checked.RUN)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _damaged_run(store, str(error)) from error


def read_run(store: Store, needed: Sequence[str] = ()) -> dict[str, Any]:
    """The content of `_run.json`. Raises ConfigError where there is none, or a value, by its dotted name, is not."""
    run = find_run(store)
    if run is None:
        raise ConfigError(f"{store.uri}: no {RUN}: not an output of armo-ray score")
    for section, _, name in (path.partition(".") for path in needed):
        if name not in run.get(section, {}):
            raise _damaged_run(store, f"it lacks {section}.{name}")
    return run


def find_manifest(store: Store, run: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The manifest, None where the output is not complete. Raises DamagedError, also where it is not of this run."""
    try:
        manifest = checked.parse(store.read(SUCCESS), checked.MANIFEST)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedError(f"{store.uri}/{SUCCESS}: damaged: {error}. {repair_advice(store)}") from error
    if run is not None and manifest.get("run_fingerprint") not in (None, _fingerprint(run)):
        raise DamagedError(f"{store.uri}/{SUCCESS}: is of another run. {repair_advice(store)}")
    return manifest


def check_manifest(store: Store, manifest: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> None:
    """Raises DamagedError where a manifest lists other parts than the commit records."""
    listed = {part["path"]: part for part in manifest["parts"]}
    if listed != {part["path"]: part for record in records for part in record["parts"]}:
        raise DamagedError(
            f"{store.uri}/{SUCCESS}: lists other parts than the commits do: armo-ray verify {store.uri} names them"
        )


def repair_advice(store: Store) -> str:
    return f"Run armo-ray verify {store.uri} --repair, then the same armo-ray score command again"


def _damaged_run(store: Store, told: str) -> DamagedError:
    advice = "Restore it from a copy, or use a new output"
    return DamagedError(f"{store.uri}/{RUN}: damaged: {told}. {advice}")


def _fingerprint(run: Mapping[str, Any]) -> str:
    return fingerprint_of(run["identity"])


def check_identity(store: Store, before: Mapping[str, Any], now_asked: Mapping[str, Any]) -> None:
    """Refuse to mix two runs in one output, naming what differs."""
    old, new = _flat(before), _flat(now_asked)
    differs = [
        f"{name} was {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if differs:
        committed = len(list_commits(store))
        advice = (
            "Use the same settings, or another output" if committed else f"Delete its {RUN} to begin anew"
        )
        raise ConfigError(
            f"output {store.uri}, with {committed} units committed, was begun by another run: "
            f"{'; '.join(differs)}. {advice}"
        )


def _flat(identity: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted names."""
    found: dict[str, Any] = {}
    for name, value in identity.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def list_commits(store: Store) -> set[str]:
    """The ids of the units that are committed."""
    return {name.removesuffix(".json") for name in store.list_names(COMMITS) if name.endswith(".json")}


def read_commits(
    store: Store,
    units: Iterable[str] | None = None,
    names: Sequence[str] = (),
    run: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The records of some units, or of all, sorted by shard and row; of them those values that `names` lists.

    Raises DamagedError where a record is, or with `run` where it is of another run.
    """
    units = list_commits(store) if units is None else units
    fingerprint = None if run is None else _fingerprint(run)
    kept = names and ("source", "first_row", *names)

    def read(unit: str) -> dict[str, Any]:
        record = read_record(store, unit)
        if run is not None and is_foreign(record, run, fingerprint):
            raise DamagedError(f"{store.uri}/{_name(unit)}: is of another run. {repair_advice(store)}")
        return {name: record[name] for name in kept or record}

    records: list[dict[str, Any]] = in_parallel(read, sorted(units))
    return sorted(records, key=lambda r: (r["source"], r["first_row"]))


def read_record(store: Store, unit: str) -> dict[str, Any]:
    """The record of a unit. Raises DamagedError, and FileNotFoundError where it is not committed."""
    try:
        return checked.parse_record(store.read(_name(unit)), unit)
    except ValueError as error:
        raise DamagedError(f"{store.uri}/{_name(unit)}: damaged: {error}. {repair_advice(store)}") from error


def is_foreign(record: Mapping[str, Any], run: Mapping[str, Any], fingerprint: str | None) -> bool:
    """Whether a record is of another run than one of this fingerprint."""
    # derived outputs of earlier versions have the fingerprint of their origin in their records
    told = checked.CHECKSUM in record or "made_by" not in run
    return bool(told and record.get("run_fingerprint", fingerprint) != fingerprint)


def _name(unit: str) -> str:
    return f"{COMMITS}/{unit}.json"


def find_record(store: Store, unit: str) -> dict[str, Any] | None:
    """The record of a unit, None where it is not committed. Raises DamagedError."""
    try:
        return read_record(store, unit)
    except FileNotFoundError:
        return None


def commit(store: Store, record: Mapping[str, Any]) -> None:
    """Write the record of a unit whose parts are written.

    Another worker may have committed the same unit: that is fine where it counted the same, and an error
    where it did not. Where both wrote the parts, the record is made to tell what is there: on another device
    the same rows may round to other bits.
    """
    name = _name(record["unit"])
    if store.create(name, sealed({**record, "committed_at": now()})):
        return
    found = read_record(store, record["unit"])
    check_same(store, found, record)
    if found["parts"] != record["parts"]:
        there = [parts.as_written(store, part) for part in found["parts"]]
        store.write(name, sealed({**found, "parts": there}))


def check_same(store: Store, found: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Raises RuntimeError where two records of a unit do not count the same."""
    for key in ("source", "first_row", "num_rows", "candidates", "scored", "rejected"):
        if found.get(key) != record[key]:
            raise RuntimeError(
                f"{store.path(_name(record['unit']))}: another run committed {key} {found.get(key)}, not {record[key]}"
            )


def unfinished(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Shards that have some of their units committed, but not all. Takes records sorted by shard and row."""
    found = []
    for source, group in groupby(records, key=lambda r: str(r["source"])):
        units = sorted((r["ordinal"], r["last"]) for r in group)
        if [ordinal for ordinal, _ in units] != list(range(len(units))) or not units[-1][1]:
            found.append(source)
    return found


def finish(store: Store) -> list[dict[str, Any]]:
    """Write the manifest, every part of every commit with rows and size, and the totals; returns the commits.

    Raises RuntimeError where a shard of an earlier run, with another input, is not done, and DamagedError where a
    record is damaged or of another run.
    """
    run = find_run(store)
    records = read_commits(store, names=_COUNTED, run=run)
    if half := unfinished(records):
        raise RuntimeError(
            f"{store.uri}: {len(half)} shards of an earlier run are not done, the first is {half[0]}. Run again with "
            f"them in the input, or drop what is committed of them with --forget {half[0]}"
        )
    manifest = {
        "totals": totals(records),
        "parts": [part for r in records for part in r["parts"]],
        "finished_at": now(),
    }
    if run is not None:
        manifest["run_fingerprint"] = _fingerprint(run)
    store.write(SUCCESS, sealed(manifest))
    return records


def totals(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums over commit records, rejects by reason."""
    sums: dict[str, Any] = dict.fromkeys(
        ("units", "candidates", "scored", "num_tokens", "computed_tokens"), 0
    )
    rejected: dict[str, int] = {}
    shards = set()
    for record in records:
        shards.add(record["source"])
        sums["units"] += 1
        for key in ("candidates", "scored", "num_tokens", "computed_tokens"):
            sums[key] += record[key]
        for reason, count in record["rejected"].items():
            rejected[reason] = rejected.get(reason, 0) + count
    return {**sums, "shards": len(shards), "rejected": rejected}


def to_json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True, default=str).encode() + b"\n"


def sealed(content: Mapping[str, Any]) -> bytes:
    """JSON with a checksum of its own content."""
    plain = json.loads(to_json(content))  # as it is read back
    return to_json({**plain, checked.CHECKSUM: checked.checksum_of(plain)})


def replica_seconds(record: Mapping[str, Any]) -> float:
    """The seconds of a replica's time that a unit took, waiting for it included."""
    return sum(float(record["seconds"].get(step, 0.0)) for step in ("wait", "pack", "model"))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
