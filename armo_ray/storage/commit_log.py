"""All commit records of an output, most of them as rows of its checkpoint, and the sums over them."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from armo_ray.storage import checkpoint
from armo_ray.storage.checkpoint import SCHEMA, Checkpoint, PartSums
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.records import CommitRecord, PartEntry, Totals
from armo_ray.storage.stamps import Stamps, stamps_in
from armo_ray.storage.store import Store

_ORDER = [("place", "ascending"), ("first_row", "ascending"), ("unit", "ascending")]
_SUMS = ("candidates", "scored", "num_tokens", "computed_tokens")
_REASONS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.int64())]))
_PARTS = pa.schema([SCHEMA.field("parts")])


@dataclass(frozen=True)
class CommitLog:
    """What is committed in an output, as one listing of its records showed it."""

    listed: pa.StringArray  # the ids of the committed units
    checkpoint: Checkpoint | None
    is_current: pa.BooleanArray  # for each row of the checkpoint, whether it counts
    read: Sequence[CommitRecord]  # the records that the checkpoint lacks
    stamps: Mapping[str, str]  # of those records, by unit

    @property
    def units(self) -> frozenset[str]:
        """The ids of the committed units."""
        return frozenset(self.listed.to_pylist())

    def read_units(self) -> frozenset[str]:
        """The ids of the committed units, and of those that they were merged from."""
        merged = pc.list_flatten(self._table(["merged"])["merged"])
        return self.units.union(pc.struct_field(merged, "unit").to_pylist())

    def extras(self) -> list[dict[str, Any]]:
        """What records hold besides what this version knows, each once."""
        return [
            json.loads(extra) for extra in pc.unique(self._table(["extra"])["extra"]).to_pylist() if extra
        ]

    def scored_with(self, name: str, value: str) -> int:
        """The scored candidates of the records that hold this besides what this version knows."""
        table = self._table(["extra", "scored"])
        extras = pc.unique(table["extra"]).to_pylist()
        chosen = [extra for extra in extras if extra and json.loads(extra).get(name) == value]
        scored = table.filter(pc.is_in(table["extra"], pa.array(chosen, pa.string())))["scored"]
        return int(pc.sum(scored).as_py() or 0)

    def units_in_shards(self, hashes: Iterable[str]) -> frozenset[str]:
        """The ids of the committed units of the shards with these hashes."""
        of_shard = pc.utf8_slice_codeunits(self.listed, 0, 16)
        chosen = pc.is_in(of_shard, pa.array(list(hashes), pa.string()))
        return frozenset(self.listed.filter(chosen).to_pylist())

    def records(self, sources: Set[str] | None = None) -> Iterator[CommitRecord]:
        """Every record, or those of some shards, in no order."""
        chosen = None if sources is None else pa.array(sorted(sources), pa.string())
        for rows in self._current_batches():
            kept = rows if chosen is None else rows.filter(pc.is_in(rows["source"], chosen))
            yield from checkpoint.records_of(kept)
        yield from (record for record in self.read if sources is None or record.source in sources)

    def totals(self, sources: Set[str] | None = None, units: Set[str] | None = None) -> Totals:
        """The sums over all records, or over those of some shards or units."""
        table = self._counts
        for name, chosen in (("source", sources), ("unit", units)):
            if chosen is not None:
                table = table.filter(pc.is_in(table[name], pa.array(sorted(chosen), pa.string())))
        entries = pc.list_flatten(table["rejected"].cast(_REASONS))
        rejected = pa.table(
            {"reason": pc.struct_field(entries, "key"), "count": pc.struct_field(entries, "value")}
        )
        by_reason = rejected.group_by("reason", use_threads=False).aggregate([("count", "sum")]).to_pylist()
        return Totals(
            units=table.num_rows,
            **{name: pc.sum(table[name]).as_py() or 0 for name in _SUMS},
            shards=len(pc.unique(table["source"])),
            rejected={entry["reason"]: entry["count_sum"] for entry in by_reason},
        )

    def sources(self) -> set[str]:
        """The URIs of the shards."""
        return set(pc.unique(self._counts["source"]).to_pylist())

    def units_of(self, sources: Set[str]) -> set[str]:
        """The ids of the units of some shards."""
        table = self._counts
        chosen = pc.is_in(table["source"], pa.array(sorted(sources), pa.string()))
        return set(table.filter(chosen)["unit"].to_pylist())

    def unfinished(self) -> list[str]:
        """The shards with some but not all of their units committed, sorted."""
        places, names = _places(self._counts["source"])
        ordinals, last = (self._counts[name].to_numpy() for name in ("ordinal", "last"))
        num_units = pc.fill_null(pc.list_value_length(self._counts["merged"]), 1).to_numpy()
        order = np.lexsort((last, ordinals, places))
        places, ordinals, last, num_units = (of[order] for of in (places, ordinals, last, num_units))
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        sizes = np.diff(starts, append=len(places))
        before = np.cumsum(num_units) - num_units  # units in the rows above
        holes = places[ordinals != before - np.repeat(before[starts], sizes)]
        open_ended = places[(starts + sizes - 1)[~last[starts + sizes - 1].astype(bool)]]
        return [names[place] for place in sorted({*holes.tolist(), *open_ended.tolist()})]

    def parts(self) -> list[PartEntry]:
        """The parts of all units, ordered by shard and row."""
        table = self._table(["unit", "source", "first_row", "parts"])
        table = table.set_column(1, "place", pa.array(_places(table["source"])[0]))
        entries = pc.list_flatten(table.sort_by(_ORDER)["parts"])
        return [checkpoint.part_of(entry) for chunk in entries.chunks for entry in chunk.to_pylist()]

    @property
    def num_parts(self) -> int:
        return self._sums_of_parts.number

    @property
    def parts_digest(self) -> str:
        """32 hex digits of the parts, in any order: the sum of the digests of a line for each, modulo 2^128."""
        return f"{self._sums_of_parts.digest:032x}"

    def folders(self) -> list[PartEntry]:
        """The parts of each folder as one entry, with the sums of their rows and bytes."""
        batches = chain(self._current_batches(["parts"]), [self._parts_of_read])
        return [
            PartEntry(folder, rows, size, self.parts_digest)
            for folder, (rows, size) in _by_folder(batches).items()
        ]

    @cached_property
    def _sums_of_parts(self) -> PartSums:
        return self._sums_of_current.plus(checkpoint.sum_parts([self._parts_of_read]))

    @cached_property
    def _sums_of_current(self) -> PartSums:
        """Those of the checkpoint's rows that count."""
        if self.checkpoint is not None and self.checkpoint.sums is not None and self._all_are_current:
            return self.checkpoint.sums
        return checkpoint.sum_parts(self._current_batches(["parts"]))

    @property
    def _parts_of_read(self) -> pa.Table:
        return pa.Table.from_pylist(
            [{"parts": checkpoint.entries_of(record)} for record in self.read], _PARTS
        )

    @property
    def _all_are_current(self) -> bool:
        return bool(self.is_current.true_count == len(self.is_current))

    def write_checkpoint(self, store: Store, run_fingerprint: str | None) -> None:
        """Write the checkpoint, unless the one that is there holds the same."""
        added = [rows for rows in checkpoint.exact(self.read, self.stamps) if rows.num_rows]
        if added or not self._all_are_current:
            sums = self._sums_of_current.plus(checkpoint.sum_parts(added))
            checkpoint.write(store, chain(self._current_batches(), added), run_fingerprint, sums)

    @cached_property
    def _counts(self) -> pa.Table:
        return self._table(["unit", "source", "ordinal", "last", "merged", "rejected", *_SUMS])

    def _table(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of all records, in no order."""
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        tables = []
        if self.checkpoint is not None:
            tables.append(self.checkpoint.table(columns).filter(self.is_current))
        rows = [{name: _value(record, name) for name in columns} for record in self.read]
        tables.append(pa.Table.from_pylist(rows, schema))
        return pa.concat_tables([table.cast(schema) for table in tables])

    def _current_batches(self, columns: Sequence[str] = SCHEMA.names) -> Iterator[pa.Table]:
        start = 0
        for rows in self.checkpoint.batches(columns) if self.checkpoint is not None else ():
            current = self.is_current.slice(start, rows.num_rows)
            yield rows if current.true_count == rows.num_rows else rows.filter(current)
            start += rows.num_rows


def _value(record: CommitRecord, name: str) -> Any:
    """What the checkpoint's column of this name holds of a record."""
    if name == "parts":
        return checkpoint.entries_of(record)
    if name == "extra":
        return checkpoint.extra_of(record.extra)
    if name == "merged":
        return [unit.to_dict() for unit in record.merged] or None
    return getattr(record, name)


def _by_folder(batches: Iterable[pa.Table]) -> dict[str, tuple[int, int]]:
    """The rows and bytes of the parts in each folder, some of them at a time."""
    by_folder: dict[str, tuple[int, int]] = {}
    for batch in batches:
        fields = {
            name: pc.struct_field(pc.list_flatten(batch["parts"]), name) for name in ("path", "rows", "bytes")
        }
        fields["path"] = pc.replace_substring_regex(fields["path"], "[^/]*$", "")
        table = pa.table(fields)
        for entry in table.group_by("path").aggregate([("rows", "sum"), ("bytes", "sum")]).to_pylist():
            rows, size = by_folder.get(entry["path"], (0, 0))
            by_folder[entry["path"]] = rows + entry["rows_sum"], size + entry["bytes_sum"]
    return dict(sorted(by_folder.items()))


def load(
    store: Store, folder: str, run_fingerprint: str | None, read: Callable[[str], CommitRecord]
) -> CommitLog:
    """List the records in a folder, and `read` those that the checkpoint lacks. Raises what `read` raises."""
    listed = stamps_in(store, folder)
    found = checkpoint.find_usable(store, run_fingerprint) if len(listed.units) else None
    is_current, missing = pa.array([], pa.bool_()), listed
    if found is not None:
        is_current, is_missing = checkpoint.compared(found, listed)
        missing = Stamps(*(column.filter(is_missing) for column in listed))
    stamps = dict(sorted(zip(*(column.to_pylist() for column in missing), strict=True)))
    return CommitLog(listed.units, found, is_current, in_parallel(read, stamps), stamps)


def _places(sources: pa.ChunkedArray) -> tuple[Any, list[str]]:
    """The place of each row's shard among all shards, sorted, and the names of these."""
    names = sorted(pc.unique(sources).to_pylist())
    places = pc.index_in(sources, value_set=pa.array(names, pa.string()))
    return places.to_numpy(), names
