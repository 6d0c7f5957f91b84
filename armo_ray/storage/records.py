"""The contents of the JSON files of an output: commit records, `_run.json` and the manifest `_SUCCESS`.

`from_json` checks and parses a file, `to_json` serializes it with a checksum. Keys that this version does not know are
kept in `extra` and written back.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.storage import json_files

Extra = tuple[tuple[str, Any], ...]  # keys and values

_PART = ("bytes", "digest", "path", "rows")
_TIMING = ("seconds", "began", "load_seconds")
_PASSES = ("num_packs", "packed_tokens", "pack_capacity", "flops", "peak_flops", "token_budget")
_COUNTS = ("candidates", "scored", "rejected", "num_tokens", "computed_tokens")
_RECORD = (
    *("unit", "source", "identity", "ordinal", "first_row", "num_rows", "last"),
    *_COUNTS,
    *("run_fingerprint", "committed_at", json_files.CHECKSUM),
)
_RUN = ("identity", "config", "versions", "carried", "made_by", "created_at", json_files.CHECKSUM)
_MANIFEST = (
    *("totals", "run_fingerprint", "finished_at", json_files.CHECKSUM),
    *("parts_in", "num_parts", "parts_digest"),
)


class DamagedError(ConfigError):
    """A file of an output is not the one that a run wrote."""


@dataclass(frozen=True, slots=True)
class PartEntry:
    """A part as commit records and manifests list it."""

    path: str  # relative to the output
    rows: int
    bytes: int
    digest: str | None = None  # 32 hex digits; None: written by an earlier version
    extra: Extra = ()

    @staticmethod
    def from_dict(entry: Mapping[str, Any]) -> "PartEntry":
        values = dict(entry)
        return PartEntry(**_take(values, _PART), extra=tuple(values.items()))

    def to_dict(self) -> dict[str, Any]:
        """The entry as it is stored."""
        return _known(self, _PART) | dict(self.extra)

    def is_in(self, folder: str) -> bool:
        """Whether the part lies in this folder of the output: scores or rejects."""
        return self.path.startswith(f"{folder}/")


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a unit took."""

    seconds: Mapping[str, float]  # by step: read, tokenize, wait, pack, model, write
    began: float  # start of its first forward pass, in seconds since 1970
    load_seconds: float  # for its replica to load the model; all digits, to distinguish replicas

    @property
    def replica_seconds(self) -> float:
        """Seconds of a replica's time that the unit took, waiting for it included."""
        return replica_seconds(self.seconds)


def replica_seconds(seconds: Mapping[str, float]) -> float:
    """The share of a unit's seconds by step that a replica spent on it."""
    return sum(float(seconds.get(step, 0.0)) for step in ("wait", "pack", "model"))


@dataclass(frozen=True, slots=True)
class ForwardPasses:
    """What the forward passes of a unit computed."""

    num_packs: int
    packed_tokens: int  # without padding
    pack_capacity: int  # tokens that the passes had room for
    flops: int
    peak_flops: float | None  # of the device, per second; None if unknown
    token_budget: int


@dataclass(frozen=True, slots=True)
class MergedUnit:
    """A unit whose rows another one holds."""

    unit: str
    first_row: int
    num_rows: int
    content: str | None = None  # as in a record

    def to_dict(self) -> dict[str, Any]:
        """The values as they are stored."""
        return _known(self, MergedUnit.__slots__)


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """The record of a committed unit, `_commits/<unit>.json`.

    In an output made from another one, a unit may hold the rows of several consecutive units of that: it is named after
    the first of them, and `merged` lists them all.
    """

    unit: str
    source: str  # URI of the shard
    identity: str  # of the shard: size in bytes, and ETag or modification time
    ordinal: int  # place among the units of the shard
    first_row: int
    num_rows: int
    last: bool  # whether it is the last unit of the shard
    candidates: int
    scored: int
    rejected: Mapping[str, int]  # by reason
    num_tokens: int  # of all conversations, each counted whole
    computed_tokens: int  # that went through the model, padding included
    parts: tuple[PartEntry, ...] = ()
    content: str | None = ""  # digest of the bytes read; None: not computed; "": an earlier version wrote it
    run_fingerprint: str | None = None
    timing: Timing | None = None
    passes: ForwardPasses | None = None
    committed_at: str | None = None
    merged: tuple[MergedUnit, ...] = ()
    checksum: str | None = None  # as read; None: not written yet, or by an earlier version
    extra: Extra = ()

    @staticmethod
    def from_json(raw: bytes, unit: str) -> "CommitRecord":
        """Parse the record of a unit. Raises ValueError that says what is wrong with it."""
        values = json_files.parse(raw, json_files.RECORD)
        _check_record(values, unit)
        return CommitRecord.from_dict(values)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "CommitRecord":
        """The record of values as they are stored, which were checked when they were read. Empties `values`."""
        for name in ("source", "identity", "run_fingerprint"):  # shared by many units
            if name in values:
                values[name] = sys.intern(values[name])
        return CommitRecord(
            **_take(values, _RECORD),
            parts=tuple(map(PartEntry.from_dict, values.pop("parts"))),
            content=values.pop("content", ""),
            merged=tuple(MergedUnit(**unit) for unit in values.pop("merged", ())),
            timing=Timing(**_take(values, _TIMING)) if "seconds" in values else None,
            passes=ForwardPasses(**_take(values, _PASSES)) if values.keys() >= set(_PASSES) else None,
            extra=tuple(values.items()),
        )

    def to_dict(self) -> dict[str, Any]:
        """The values as they are stored."""
        values = _known(self, _RECORD) | {"parts": [part.to_dict() for part in self.parts]}
        if self.content != "":
            values["content"] = self.content
        if self.merged:
            values["merged"] = [unit.to_dict() for unit in self.merged]
        if self.timing is not None:
            values |= _known(self.timing, _TIMING)
        if self.passes is not None:
            values |= _known(self.passes, _PASSES) | {"peak_flops": self.passes.peak_flops}
        return values | dict(self.extra)

    def to_json(self) -> bytes:
        return json_files.sealed(self.to_dict())

    def parts_in(self, folder: str) -> list[PartEntry]:
        """The parts in this folder of the output: scores or rejects."""
        return [part for part in self.parts if part.is_in(folder)]

    @property
    def num_units(self) -> int:
        """The number of units of the shard that it holds."""
        return len(self.merged) or 1

    def ranges(self) -> list["CommitRecord"]:
        """The units that it was merged from, without counts or parts of their own; by default itself."""
        last = self.num_units - 1
        return [
            replace(
                self,
                unit=unit.unit,
                ordinal=self.ordinal + i,
                first_row=unit.first_row,
                num_rows=unit.num_rows,
                last=self.last and i == last,
                content=unit.content,
                merged=(),
                parts=(),
            )
            for i, unit in enumerate(self.merged)
        ] or [self]


def _check_record(values: Mapping[str, Any], unit: str) -> None:
    if values["unit"] != unit:
        raise ValueError(f"it is the record of unit {values['unit']}")
    paths = [part["path"] for part in values["parts"]]
    if len(set(paths)) < len(paths) or any(json_files.unit_of(path) != unit for path in paths):
        raise ValueError(f"its parts cannot be {json_files.shortened(paths)}")
    if "seconds" in values and (missing := {"began", "load_seconds", "committed_at"} - values.keys()):
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")


@dataclass(frozen=True, slots=True)
class RunFile:
    """The content of `_run.json`: the run that an output belongs to.

    `identity` holds the settings that rows, columns and units depend on. Two runs can share an output only if these are
    equal. An earlier version may have recorded fewer of them.
    """

    identity: Mapping[str, Any]
    config: Mapping[str, Any] | None = None
    versions: Mapping[str, Any] | None = None
    carried: str | None = None  # Arrow schema of the kept columns, serialized, in hex
    made_by: Mapping[str, Any] | None = None  # the command that made the output from others, and its options
    created_at: str | None = None
    checksum: str | None = None
    extra: Extra = ()

    @staticmethod
    def from_json(raw: bytes) -> "RunFile":
        """Parse `_run.json`. Raises ValueError that says what is wrong with it."""
        values = json_files.parse(raw, json_files.RUN)
        return RunFile(**_take(values, _RUN), extra=tuple(values.items()))

    def to_dict(self) -> dict[str, Any]:
        """The values as they are stored."""
        return _known(self, _RUN) | dict(self.extra)

    def to_json(self) -> bytes:
        return json_files.sealed(self.to_dict())

    @property
    def fingerprint(self) -> str:
        """32 hex digits of the identity."""
        return json_files.fingerprint_of(self.identity)

    @property
    def keep_text(self) -> bool:
        """Whether the scores hold the text of prompts and responses."""
        return bool(self.identity.get("keep_text"))


_SUMS = ("units", "candidates", "scored", "num_tokens", "computed_tokens")


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over commit records; `shards` is None if they were not counted."""

    units: int = 0
    candidates: int = 0
    scored: int = 0
    num_tokens: int = 0
    computed_tokens: int = 0
    shards: int | None = None
    rejected: Mapping[str, int] = field(default_factory=dict)  # by reason

    @staticmethod
    def of(records: Iterable[CommitRecord]) -> "Totals":
        sums = dict.fromkeys(_SUMS, 0)
        rejected: dict[str, int] = {}
        shards = set()
        for record in records:
            shards.add(record.source)
            for name in _SUMS:
                sums[name] += 1 if name == "units" else getattr(record, name)
            for reason, count in record.rejected.items():
                rejected[reason] = rejected.get(reason, 0) + count
        return Totals(**sums, shards=len(shards), rejected=rejected)

    @property
    def num_rejected(self) -> int:
        return sum(self.rejected.values())

    def plus(self, other: "Totals") -> "Totals":
        """The sums of both, without `shards`: a shard may be in both."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in _SUMS}
        return Totals(**sums, rejected=added(self.rejected, other.rejected))

    def to_dict(self) -> dict[str, Any]:
        """The totals as the manifest holds them."""
        return _known(self, (*_SUMS, "shards")) | {"rejected": dict(self.rejected)}


def added(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    """The sums of two mappings of counts, by name."""
    return {name: first.get(name, 0) + second.get(name, 0) for name in {**first, **second}}


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `_SUCCESS`: every part of a complete output.

    Of a large output it names the file that lists the parts, with their number and a digest of the list.
    """

    totals: Mapping[str, Any]  # as counted by the version that wrote it; see Totals
    parts: tuple[PartEntry, ...]  # empty if they are listed in `parts_in`
    run_fingerprint: str | None = None
    finished_at: str | None = None
    checksum: str | None = None
    parts_in: str | None = None
    num_parts: int | None = None
    parts_digest: str | None = None
    extra: Extra = ()

    @staticmethod
    def from_json(raw: bytes) -> "Manifest":
        """Parse `_SUCCESS`. Raises ValueError that says what is wrong with it."""
        values = json_files.parse(raw, json_files.MANIFEST)
        listed = values.pop("parts")
        if (listed is None) != ("parts_in" in values and {"num_parts", "parts_digest"} <= values.keys()):
            raise ValueError("it must list its parts, or name the file that does")
        parts = tuple(map(PartEntry.from_dict, listed or ()))
        return Manifest(**_take(values, _MANIFEST), parts=parts, extra=tuple(values.items()))

    def to_dict(self) -> dict[str, Any]:
        """The values as they are stored."""
        parts = [part.to_dict() for part in self.parts] if self.parts_in is None else None
        return _known(self, _MANIFEST) | {"parts": parts} | dict(self.extra)

    def to_json(self) -> bytes:
        return json_files.sealed(self.to_dict())


def _take(values: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Remove the values of these names from `values` and return them."""
    return {name: values.pop(name) for name in names if name in values}


def _known(record: Any, names: Iterable[str]) -> dict[str, Any]:
    """The attributes with these names that are not None."""
    values = {name: getattr(record, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
