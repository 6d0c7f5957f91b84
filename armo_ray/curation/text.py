"""The text of scored candidates, read again from the shards that they came from."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from armo_ray.curation.scores import Scores
from armo_ray.errors import ConfigError
from armo_ray.schema import TEXT_FIELDS
from armo_ray.storage import commits
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.readers import BadRow, Row, read_units
from armo_ray.storage.retries import explain
from armo_ray.storage.shards import Shard, stat_shard
from armo_ray.storage.store import Store
from armo_ray.storage.units import cut
from armo_ray.text.conversations import candidates_of
from armo_ray.text.layouts import Layout
from armo_ray.text.messages import Reading

TEXT = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("source_row", pa.int64()),
        pa.field("candidate", pa.int32()),
        *TEXT_FIELDS,
    ]
)
_UNIT_ROWS = 2048


@dataclass(frozen=True)
class Source:
    """A shard as it was when it was scored, and how it was read."""

    shard: Shard
    layout: Layout
    reading: Reading
    scored: int  # candidates


def find_sources(scores: Scores) -> dict[str, Source]:
    """The shards of all scores by their URIs.

    Raises ConfigError where one is gone or changed since it was scored, or was scored in two states or layouts:
    then its text is not what was scored.
    """
    known: dict[str, tuple[str, Layout, Reading]] = {}
    scored: dict[str, int] = {}
    for output, run in zip(scores.outputs, scores.runs, strict=True):
        kind, columns = _layout(run["identity"]["layout"])
        reading = Reading.of(run["identity"])
        store = Store(output)
        for record in commits.read_commits(store):
            if record["scored"]:
                uri, found_as = record["source"], (record["identity"], Layout(kind, columns), reading)
                if known.setdefault(uri, found_as) != found_as:
                    raise ConfigError(
                        f"{uri}: {output} was scored from it in another state or layout than other scores, and its "
                        f"text is needed: leave one of them out, or score again with --keep-text"
                    )
                scored[uri] = scored.get(uri, 0) + record["scored"]
    found: list[Shard | None] = in_parallel(_stat, known)
    sources = {}
    for (uri, (identity, layout, reading)), shard in zip(known.items(), found, strict=True):
        if shard is None or shard.identity != identity:
            state = "is gone" if shard is None else f"changed since (was {identity}, is {shard.identity})"
            raise ConfigError(
                f"{uri}: the text of its candidates is needed, but the shard {state}. Put it back as it was, "
                f"or score it again with --keep-text"
            )
        sources[uri] = Source(shard, layout, reading, scored[uri])
    return sources


def _layout(recorded: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    return recorded["kind"], {part: column for part, column in recorded.items() if part != "kind"}


def _stat(uri: str) -> Shard | None:
    try:
        return stat_shard(uri)
    except OSError as error:
        raise ConfigError(f"{uri}: cannot be looked up: {explain(error)}") from error


def read_text(source: Source, rows: set[int]) -> Iterator[pa.Table]:
    """The candidates of some rows of a shard, in the shard's order, in tables of the schema TEXT.

    Raises RuntimeError where a row cannot be read as it was when it was scored.
    """
    layout = source.layout
    (span,) = cut([source.shard], "", _UNIT_ROWS, layout.candidate_columns)
    if span.error is not None:
        raise RuntimeError(f"{source.shard.uri}: cannot be read any more: {span.error}")
    if span.units:
        ordered = sorted(rows)
        starts = [bisect_left(ordered, unit.first_row) for unit in span.units]
        stops = [bisect_left(ordered, unit.first_row + unit.num_rows) for unit in span.units]
        wanted = zip(span.units, starts, stops, strict=True)
        span = replace(span, units=tuple(unit for unit, start, stop in wanted if start < stop))

    def count(row: Row) -> int:
        return 1 if isinstance(row, BadRow) else layout.count(row)

    for unit in read_units(span, list(layout.columns.values()), count, _UNIT_ROWS, ""):
        if found := [(number, row) for number, row in unit.rows if number in rows]:
            yield _texts(source, found)


def _texts(source: Source, rows: list[tuple[int, Row]]) -> pa.Table:
    entries = []
    for number, row in rows:
        if isinstance(row, BadRow):
            raise RuntimeError(f"{source.shard.uri} row {number}: cannot be read any more: {row.detail}")
        for found in candidates_of(row, source.layout, source.reading):
            if found.reason is None:
                entries.append((source.shard.uri, number, found.index, *found.shown()))
    columns = list(zip(*entries, strict=True)) or [()] * len(TEXT)
    return pa.table([pa.array(column, f.type) for column, f in zip(columns, TEXT, strict=True)], schema=TEXT)
