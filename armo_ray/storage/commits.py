"""The output's transaction log: one identity per output, one record per unit, a manifest when all is there.

A reader trusts `_commits/` only: parts without a record are the remains of a stopped task and are written
again under the same name.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.storage.filesystem import in_parallel
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

    Raises ConfigError where the output belongs to a run of another identity, or cannot be written.
    """
    asked = json.loads(json.dumps(identity))  # as it is read back
    content = {"identity": asked, **details, "created_at": now()}
    try:
        found = store.read_json(RUN)
        if found is None:
            if store.list_names(COMMITS):
                raise ConfigError(
                    f"output {store.uri}: has commits but lost its {RUN}: restore it, or use a new output"
                )
            created = not write or store.create(RUN, to_json(content))
            found = content if created else store.read_json(RUN)
    except OSError as error:
        raise ConfigError(f"output {store.uri}: cannot be written: {explain(error)}") from error
    if found is None:
        raise ConfigError(f"output {store.uri}: {RUN} vanished while it was read")
    check_identity(store, found["identity"], asked)
    return found


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
    store: Store, units: Iterable[str] | None = None, names: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The records of some units, or of all, sorted by shard and row; of them those values that `names` lists."""
    units = list_commits(store) if units is None else units
    kept = names and ("source", "first_row", *names)

    def read(unit: str) -> dict[str, Any]:
        record = json.loads(store.read(f"{COMMITS}/{unit}.json"), object_pairs_hook=_interned)
        record["source"] = sys.intern(record["source"])
        return {name: record[name] for name in kept or record}

    records: list[dict[str, Any]] = in_parallel(read, sorted(units))
    return sorted(records, key=lambda r: (r["source"], r["first_row"]))


def _interned(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are not copies of their own: records come by the hundred thousand."""
    return {sys.intern(name): value for name, value in pairs}


def commit(store: Store, record: Mapping[str, Any]) -> None:
    """Write the record of a unit whose parts are written.

    Another worker may have committed the same unit: that is fine where it counted the same, and an error
    where it did not.
    """
    name = f"{COMMITS}/{record['unit']}.json"
    if store.create(name, to_json({**record, "committed_at": now()})):
        return
    found = store.read_json(name) or {}
    for key in ("source", "first_row", "num_rows", "candidates", "scored", "rejected"):
        if found.get(key) != record[key]:
            raise RuntimeError(
                f"{store.path(name)}: another run committed {key} {found.get(key)}, not {record[key]}"
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

    Raises RuntimeError where a shard of an earlier run, with another input, is not done.
    """
    records = read_commits(store, names=_COUNTED)
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
    store.write(SUCCESS, to_json(manifest))
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


def replica_seconds(record: Mapping[str, Any]) -> float:
    """The seconds of a replica's time that a unit took, waiting for it included."""
    return sum(float(record["seconds"].get(step, 0.0)) for step in ("wait", "pack", "model"))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
