"""Rows of an input by what an earlier output says of them: for a cascade, whose second model sees only some."""

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import duckdb

from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import parse
from armo_ray.outputs.scores import Part, columns_of, open_scores, scan
from armo_ray.storage import commits
from armo_ray.storage.json_files import unit_of
from armo_ray.storage.local_files import Opened
from armo_ray.storage.shards import Shard
from armo_ray.storage.store import Store

MARGIN = "margin"  # of a row: its best score less the second best; null with one candidate


@dataclass(frozen=True)
class Selection:
    """The rows of a complete output all of whose scored candidates satisfy a condition."""

    output: str
    where: str
    sql: str
    run: str  # fingerprint of the output's run
    finished_at: str  # when it was completed last: other rows after that are not seen

    def recorded(self) -> dict[str, str]:
        """What the scores of a run with this selection depend on."""
        return {"where": self.where, "run": self.run}


def select(output: str, where: str) -> Selection:
    """Parse a condition on the columns of an output, and the `margin` of a row. Raises ConfigError."""
    scores = open_scores([output])
    with closing(_connection()) as con:
        known = columns_of(con, scores)
    expression = parse(where, {**known, MARGIN: "DOUBLE"})
    if MARGIN in known:
        raise ConfigError(f"only-where: {output} has a column {MARGIN} of its own: rename it there")
    if expression.quantiles:
        raise ConfigError("only-where: quantiles change as an output grows; give numbers")
    manifest = commits.find_manifest(Store(output))
    finished_at = manifest.finished_at if manifest and manifest.finished_at else ""
    return Selection(scores.outputs[0], where, expression.sql, scores.runs[0].fingerprint, finished_at)


def check_covered(selection: Selection, shards: Iterable[Shard]) -> None:
    """Raises ConfigError unless the output has all of these shards, as they are now."""
    known: dict[str, set[str]] = {}
    for record in commits.read_log(Store(selection.output)).records():
        known.setdefault(record.source, set()).add(record.identity)
    for shard in shards:
        if shard.uri not in known:
            raise ConfigError(
                f"earlier: {selection.output} has no scores of {shard.uri}: score it there first"
            )
        if known[shard.uri] != {shard.identity}:
            raise ConfigError(f"earlier: {shard.uri} changed since it was scored into {selection.output}")


@lru_cache(maxsize=64)
def selected_rows(selection: Selection, shard_hash: str) -> frozenset[int]:
    """The numbers of the selected rows of a shard."""
    parts = _parts_by_shard(selection).get(shard_hash)
    if not parts:
        return frozenset()
    with closing(_connection()) as con:
        con.execute(f"CREATE TEMP TABLE scored AS {scan(parts)}")
        margins = "SELECT source_row, max(score, 2) AS __top FROM scored GROUP BY source_row"
        rows = con.execute(
            f"SELECT source_row FROM (SELECT s.*, __top[1]::DOUBLE - __top[2] AS {MARGIN} FROM scored s "
            f"JOIN ({margins}) USING (source_row)) GROUP BY source_row "
            f"HAVING bool_and(coalesce({selection.sql}, false))"
        ).fetchall()
    return frozenset(number for (number,) in rows)


@lru_cache(maxsize=1)
def _parts_by_shard(selection: Selection) -> Mapping[str, list[Part]]:
    found: dict[str, list[Part]] = {}
    output = selection.output
    for part in open_scores([output]).parts:
        unit = unit_of(part.uri.removeprefix(f"{output.rstrip('/')}/"))
        assert unit is not None, "parts of outputs are named after their units"
        found.setdefault(unit[:16], []).append(part)
    return found


def _connection() -> Any:
    con = duckdb.connect()
    con.register_filesystem(Opened())
    con.execute("SET threads = 1")
    return con
