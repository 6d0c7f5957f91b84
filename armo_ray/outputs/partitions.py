"""A choice of an output's partitions: the candidates below some of its hive directories."""

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from armo_ray.errors import ConfigError
from armo_ray.storage.json_files import shortened
from armo_ray.storage.parts import SCORES, hive_values
from armo_ray.storage.records import CommitRecord, PartEntry

_RANGE = ".."


class Values(NamedTuple):
    """Values of a hive column, from `first` to `last` in the order of text, both included."""

    column: str
    first: str
    last: str


# a candidate is in them if, for each column, its value is in one of those named; without any, everything is
Partitions = tuple[Values, ...]


def parse_partitions(texts: Iterable[str]) -> Partitions:
    """Parse `date=2026-11-20` or `date=2026-11-01..2026-11-07`. Raises ConfigError."""
    partitions = []
    for text in texts:
        column, sign, values = text.partition("=")
        first, dots, last = values.partition(_RANGE)
        if not (column and sign and first and (last or not dots)):
            raise ConfigError(f"partition {text}: expected NAME=VALUE or NAME=FIRST{_RANGE}LAST")
        if dots and last < first:
            raise ConfigError(f"partition {text}: {first} comes after {last}")
        partitions.append(Values(column, first, last if dots else first))
    return tuple(partitions)


def in_partitions(path: str, partitions: Partitions) -> bool:
    """Whether a file lies in the partitions, by the hive directories in its path."""
    values = dict(hive_values(path))
    found = {w.column for w in partitions if w.first <= (values.get(w.column) or "") <= w.last}
    return found == {w.column for w in partitions}


def units_in_partitions(records: Iterable[CommitRecord], partitions: Partitions) -> Iterator[CommitRecord]:
    """The records of the units whose candidates lie in the partitions.

    Raises ConfigError if only some of a unit's candidates do: the counts of a unit are not known by partition.
    """
    for record in records:
        inside = {in_partitions(path, partitions) for path in _places([record])}
        if len(inside) > 1:
            columns = ", ".join(dict.fromkeys(values.column for values in partitions))
            raise ConfigError(
                f"partition {columns}: units of this output have candidates of several values, which this command "
                f"cannot tell apart: choose by directories of the input, or filter rows with armo-ray filter --where"
            )
        if inside == {True}:
            yield record


def shards_in_partitions(
    records: Iterable[CommitRecord], partitions: Partitions, sources: Set[str] = frozenset()
) -> Iterator[CommitRecord]:
    """All records of the shards that have candidates in the partitions, without what lies outside.

    A record of a unit that is cut or outside keeps its parts inside and no rejects, as their partition is not known.

    Args:
        records: sorted by shard.
        sources: URIs of shards of which records are taken even if nothing in them lies inside.
    """
    for units, inside, is_whole in _by_shard(records, partitions):
        if is_whole:
            yield from units
        elif inside or units[0].source in sources:
            yield from (_cut(record, inside) for record in units)


def sources_in_partitions(records: Iterable[CommitRecord], partitions: Partitions) -> set[str]:
    """The URIs of the shards with candidates in the partitions, and of those that have none and may belong there.

    Args:
        records: sorted by shard.
    """
    columns = {values.column for values in partitions}
    sources = set()
    for units, inside, _ in _by_shard(records, partitions):
        source = units[0].source
        unknown = not any(record.scored for record in units) and columns - dict(hive_values(source)).keys()
        if inside or unknown:
            sources.add(source)
    return sources


def check_whole_shards(records: Iterable[CommitRecord], partitions: Partitions) -> None:
    """Raises ConfigError if the partitions cut a shard, for an output that grows: it can get its units only once."""
    for units, inside, is_whole in _by_shard(records, partitions):
        if inside and not is_whole:
            raise ConfigError(
                f"{units[0].source}: has candidates in and outside of the partition, and --append can add a shard only "
                f"as a whole: choose by directories of the input, or leave out --append"
            )


def _by_shard(
    records: Iterable[CommitRecord], partitions: Partitions
) -> Iterator[tuple[list[CommitRecord], set[str], bool]]:
    """The records of each shard, the places of its candidates that lie in the partitions, and whether all do."""
    for _, group in groupby(records, key=lambda record: record.source):
        units = list(group)
        places = _places(units)
        inside = {path for path in places if in_partitions(path, partitions)}
        yield units, inside, len(inside) == len(places)


def _cut(record: CommitRecord, inside: Set[str]) -> CommitRecord:
    parts = record.parts_in(SCORES)
    left = tuple(part for part in parts if part.path in inside)
    if left and len(left) == len(parts):
        return record
    cut = replace(record, parts=left, rejected={})
    return cut if left else replace(cut, num_tokens=0, computed_tokens=0)


def _places(units: Sequence[CommitRecord]) -> list[str]:
    """The paths that tell in which partitions the candidates of units of a shard are: units without scores follow."""
    return [part.path for record in units for part in record.parts_in(SCORES)] or [units[0].source]


def check_partitions(outputs: Iterable[tuple[str, Sequence[PartEntry]]], partitions: Partitions) -> None:
    """Raises ConfigError if an output lacks a column of the partitions, or if no output has one of the values."""
    known: dict[str, set[str]] = {values.column: set() for values in partitions}
    for output, parts in outputs:
        paths = {part.path.rpartition("/")[0] for part in parts if part.is_in(SCORES)}
        seen = {pair for path in paths for pair in hive_values(f"{path}/")}
        columns = {column for column, _ in seen}
        if missing := known.keys() - columns:
            there = f"there are {', '.join(sorted(columns))}" if columns else "there are none"
            raise ConfigError(f"partition {min(missing)}: {output} has no directories of that name; {there}")
        for column, value in seen:
            if column in known and value is not None:
                known[column].add(value)
    for column, first, last in partitions:
        if not any(first <= value <= last for value in known[column]):
            wanted = first if first == last else f"{first}{_RANGE}{last}"
            raise ConfigError(
                f"partition {column}={wanted}: no candidates there; there are {shortened(sorted(known[column]))}"
            )
