"""What of an input is committed in an output: units to do, and commits that no longer fit their shard.

Whole spans go in, so that the commits of what a shard holds can be told from those of what it held before.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from armo_ray.errors import ConfigError
from armo_ray.storage import commits
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.records import CommitRecord
from armo_ray.storage.shards import Shard, hash_of
from armo_ray.storage.store import Store
from armo_ray.storage.units import UNREADABLE, Span, unit_id


@dataclass(frozen=True)
class Standing:
    """What of an input is committed in an output, and what is not."""

    committed: frozenset[str]  # units of the output that count
    left: list[Span]  # spans, or those of their units, that are to be done
    changed: dict[str, frozenset[str]]  # by shard, commits of what it held before
    dropped: frozenset[str] = frozenset()  # units whose commits are deleted when work begins


def standing(
    store: Store,
    spans: Sequence[Span],
    fingerprint: str,
    redo: Sequence[str] = (),
    forget: Sequence[str] = (),
) -> Standing:
    """What is committed of the spans of a whole input, and what is to be dropped. Nothing is written.

    Dropped are the commits of a shard that could not be read and has changed since, of shards in `redo` that changed,
    and of those in `forget`. Both hold URIs or globs.

    Raises ConfigError if another shard changed, `redo` matches no shard of the input, or `forget` matches one.
    """
    return _resolved(list_standing(store, spans, fingerprint), store, spans, redo, forget)


def list_standing(store: Store, spans: Sequence[Span], fingerprint: str) -> Standing:
    """List `_commits/` once and compare; shards that changed are returned in `changed`."""
    committed = frozenset(commits.list_commits(store))
    by_shard: dict[str, set[str]] = {}
    for unit in committed:
        by_shard.setdefault(unit[:16], set()).add(unit)
    left, partly = [], []
    changed, repaired = {}, set()
    for span in spans:
        own = by_shard.get(span.shard.hash, set())
        rest, known = _rest(span, fingerprint, own)
        stale = own - known
        repaired |= {unit for unit in stale if unit.endswith(UNREADABLE)}
        if others := frozenset(stale - repaired):
            changed[span.shard.uri] = others
        if rest.done:
            partly.append(rest)
        elif rest.units or not span.units:
            left.append(rest)
    ended: list[bool] = in_parallel(lambda span: _has_ended(store, span, fingerprint), partly)
    left += [span for span, end in zip(partly, ended, strict=True) if not end]
    return Standing(committed - repaired, left, changed, frozenset(repaired))


def to_do(store: Store, spans: Sequence[Span], fingerprint: str) -> list[Span]:
    """The spans, or those of their units, that are not committed."""
    return list_standing(store, spans, fingerprint).left


def _resolved(
    before: Standing, store: Store, spans: Iterable[Span], redo: Sequence[str], forget: Sequence[str]
) -> Standing:
    uris = {span.shard.uri for span in spans}
    if here := [uri for uri in sorted(uris) if _matches(uri, forget)]:
        raise ConfigError(f"forget: {here[0]} is in the input; --redo scores it again where it changed")
    if unknown := [pattern for pattern in redo if not any(_matches(uri, [pattern]) for uri in uris)]:
        raise ConfigError(
            f"redo: {unknown[0]} is not in the input; --forget drops what is committed of a shard"
        )
    refused = [uri for uri in sorted(before.changed) if not _matches(uri, redo)]
    if refused:
        others = f", as {len(refused) - 1} others did" if len(refused) > 1 else ""
        raise ConfigError(
            f"{refused[0]} changed after it was scored into {store.uri}{others}. Drop what was scored of it and "
            f"score what it holds now with --redo {refused[0]}, or leave it as it was and put new rows into new shards"
        )
    units = frozenset().union(*before.changed.values(), _committed_of(store, before.committed, forget))
    return replace(before, committed=before.committed - units, changed={}, dropped=before.dropped | units)


def vanished(records: Iterable[CommitRecord], uris: Set[str], inputs: Iterable[str]) -> list[str]:
    """The shards of commit records that are below or match an input, but are not among the URIs found there."""
    patterns = [pattern for uri in inputs for pattern in (uri, f"{uri.rstrip('/')}/*")]
    sources = {record.source for record in records}
    return sorted(uri for uri in sources - uris if _matches(uri, patterns))


def drop(store: Store, units: Iterable[str]) -> None:
    """Delete the commit records of some units, then their parts."""

    def one(unit: str) -> None:
        record = commits.read_record(store, unit)
        store.delete(f"{commits.COMMITS}/{unit}.json")
        for part in record.parts:
            store.delete(part.path)

    in_parallel(one, sorted(units))


def _rest(span: Span, fingerprint: str, own: set[str]) -> tuple[Span, set[str]]:
    """A span without the units that are among the commits of its shard, and these units."""
    if span.units:
        left = tuple(unit for unit in span.units if unit.id not in own)
        return replace(span, units=left), {unit.id for unit in span.units} & own
    ordinals = _ordinals(span.shard, fingerprint, own)
    return replace(span, done=frozenset(ordinals)), set(ordinals.values())


def _ordinals(shard: Shard, fingerprint: str, own: set[str]) -> dict[int, str]:
    """Which runs of a JSONL shard are committed. Runs are committed about in order, so few are tried."""
    committed: dict[int, str] = {}
    ordinal = 0
    while len(committed) < len(own) and ordinal < 2 * len(own) + 1000:
        unit = unit_id(shard, fingerprint, str(ordinal))
        if unit in own:
            committed[ordinal] = unit
        ordinal += 1
    return committed


def _has_ended(store: Store, span: Span, fingerprint: str) -> bool:
    """Whether the runs of a JSONL shard are committed up to one that says it is the last."""
    ordinal = max(span.done)
    if span.done != frozenset(range(ordinal + 1)):
        return False
    name = unit_id(span.shard, fingerprint, str(ordinal))
    return commits.read_record(store, name).last


def _matches(uri: str, patterns: Iterable[str]) -> bool:
    return any(uri == pattern or fnmatchcase(uri, pattern) for pattern in patterns)


def _committed_of(store: Store, committed: frozenset[str], forget: Sequence[str]) -> set[str]:
    """The units of shards that URIs name or globs match; for a glob, the records are read."""
    if not forget:
        return set()
    hashes = {hash_of(uri) for uri in forget}
    units = {unit for unit in committed if unit[:16] in hashes}
    if any(char in pattern for pattern in forget for char in "*?["):
        records = commits.read_commits(store, committed)
        units |= {record.unit for record in records if _matches(record.source, forget)}
    return units
