"""Which units of an input are committed in an output, which are left, and which commits a changed shard outdated.

The functions take whole spans: a commit that matches no unit of a shard was made from earlier content of the shard.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from armo_ray.errors import ConfigError
from armo_ray.storage import commits
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.shards import Shard, hash_of
from armo_ray.storage.store import Store
from armo_ray.storage.units import UNREADABLE, Span, unit_id


@dataclass(frozen=True)
class Standing:
    """Which units of an input are committed in an output, and which are not."""

    committed: frozenset[str]  # ids of the valid units in the output
    left: list[Span]  # what is to be done: spans, with only the units that are not committed
    changed: dict[str, frozenset[str]]  # by URI of a shard: units committed from its earlier content
    dropped: frozenset[str] = frozenset()  # ids of units whose commits are deleted when work begins


def standing(
    store: Store,
    spans: Sequence[Span],
    fingerprint: str,
    redo: Sequence[str] = (),
    forget: Sequence[str] = (),
    committed: Iterable[str] | None = None,
) -> Standing:
    """Which units of a whole input are committed, and which commits are to be dropped. Writes nothing.

    Commits are dropped if their shard could not be read and has changed since, if their shard changed and matches
    `redo`, or if their shard matches `forget`. Both hold URIs or globs. `committed` are the ids of all committed units,
    if they were listed before.

    Raises ConfigError if any other shard changed, if a pattern of `redo` matches no shard of the input, or if `forget`
    matches a shard of the input.
    """
    return _resolved(list_standing(store, spans, fingerprint, committed), store, spans, redo, forget)


def list_standing(
    store: Store, spans: Sequence[Span], fingerprint: str, committed: Iterable[str] | None = None
) -> Standing:
    """As `standing`, without options: lists `_commits/` at most once, and returns shards that changed in `changed`."""
    committed = frozenset(commits.list_commits(store) if committed is None else committed)
    by_shard: dict[str, set[str]] = {span.shard.hash: set() for span in spans}
    for unit in committed:
        if unit[:16] in by_shard:
            by_shard[unit[:16]].add(unit)
    left, partial = [], []
    changed, repaired = {}, set()
    for span in spans:
        own = by_shard[span.shard.hash]
        rest, known = _rest(span, fingerprint, own)
        stale = own - known
        repaired |= {unit for unit in stale if unit.endswith(UNREADABLE)}
        if others := frozenset(stale - repaired):
            changed[span.shard.uri] = others
        if rest.done:
            partial.append(rest)
        elif rest.units or not span.units:
            left.append(rest)
    ended: list[bool] = in_parallel(lambda span: _has_ended(store, span, fingerprint), partial)
    left += [span for span, end in zip(partial, ended, strict=True) if not end]
    return Standing(committed - repaired, left, changed, frozenset(repaired))


def to_do(store: Store, spans: Sequence[Span], fingerprint: str) -> list[Span]:
    """The spans that are not fully committed, with only the units that are not."""
    committed = commits.list_commits(store, {span.shard.hash for span in spans})
    return list_standing(store, spans, fingerprint, committed).left


def _resolved(
    before: Standing, store: Store, spans: Iterable[Span], redo: Sequence[str], forget: Sequence[str]
) -> Standing:
    uris = {span.shard.uri for span in spans}
    if here := [uri for uri in sorted(uris) if _matches(uri, forget)]:
        raise ConfigError(f"forget: {here[0]} is in the input; to score it again after a change, use --redo")
    if unknown := [pattern for pattern in redo if not any(_matches(uri, [pattern]) for uri in uris)]:
        raise ConfigError(
            f"redo: {unknown[0]} is not in the input; to drop what is committed of a shard, use --forget"
        )
    refused = [uri for uri in sorted(before.changed) if not _matches(uri, redo)]
    if refused:
        others = f", and so did {len(refused) - 1} others" if len(refused) > 1 else ""
        raise ConfigError(
            f"{refused[0]} changed after it was scored into {store.uri}{others}. To drop its scores and score it "
            f"again, use --redo {refused[0]} (in a TOML file: redo); or restore it and put new rows into new shards"
        )
    dropped = frozenset().union(*before.changed.values(), _committed_of(store, before.committed, forget))
    return replace(before, committed=before.committed - dropped, changed={}, dropped=before.dropped | dropped)


def vanished(sources: Set[str], uris: Set[str], inputs: Iterable[str]) -> list[str]:
    """The committed shards, of `sources`, that lie below or match an input but are not among `uris`, its shards now."""
    patterns = [pattern for uri in inputs for pattern in (uri, f"{uri.rstrip('/')}/*")]
    return sorted(uri for uri in sources - uris if _matches(uri, patterns))


def drop(store: Store, units: Iterable[str]) -> None:
    """Delete the commit records and the parts of these units. A record is deleted before its parts."""

    def drop_unit(unit: str) -> None:
        record = commits.read_record(store, unit)
        store.delete(f"{commits.COMMITS}/{unit}.json")
        for part in record.parts:
            store.delete(part.path)

    in_parallel(drop_unit, sorted(units))


def _rest(span: Span, fingerprint: str, own: set[str]) -> tuple[Span, set[str]]:
    """A span without its committed units, and the ids of those; `own` are all committed ids of its shard."""
    if span.units:
        left = tuple(unit for unit in span.units if unit.id not in own)
        return replace(span, units=left), {unit.id for unit in span.units} & own
    ordinals = _ordinals(span.shard, fingerprint, own)
    return replace(span, done=frozenset(ordinals)), set(ordinals.values())


def _ordinals(shard: Shard, fingerprint: str, own: set[str]) -> dict[int, str]:
    """The committed units of a JSONL shard, by ordinal. They are committed roughly in order, so few ids are tried."""
    committed: dict[int, str] = {}
    ordinal = 0
    while len(committed) < len(own) and ordinal < 2 * len(own) + 1000:
        unit = unit_id(shard, fingerprint, str(ordinal))
        if unit in own:
            committed[ordinal] = unit
        ordinal += 1
    return committed


def _has_ended(store: Store, span: Span, fingerprint: str) -> bool:
    """Whether all units of a JSONL shard are committed, up to one whose record says it is the last."""
    ordinal = max(span.done)
    if span.done != frozenset(range(ordinal + 1)):
        return False
    name = unit_id(span.shard, fingerprint, str(ordinal))
    return commits.read_record(store, name).last


def _matches(uri: str, patterns: Iterable[str]) -> bool:
    return any(uri == pattern or fnmatchcase(uri, pattern) for pattern in patterns)


def _committed_of(store: Store, committed: frozenset[str], forget: Sequence[str]) -> set[str]:
    """The committed units of the shards that URIs or globs name. Reads the commits only if there is a glob."""
    if not forget:
        return set()
    hashes = {hash_of(uri) for uri in forget}
    units = {unit for unit in committed if unit[:16] in hashes}
    if any(char in pattern for pattern in forget for char in "*?["):
        log = commits.read_log(store)
        units |= committed & log.units_of({uri for uri in log.sources() if _matches(uri, forget)})
    return units
