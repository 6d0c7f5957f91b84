"""A unit that failed in the graph, scored row by row in a separate process that it may kill."""

import time
from dataclasses import replace
from functools import cached_property
from typing import Any

from armo_ray.score.job import Job
from armo_ray.score.passes import Committed
from armo_ray.score.stages.read import load_encoder, tokenized, units_of
from armo_ray.score.stages.score import Scorer
from armo_ray.score.stages.unit_block import to_raw
from armo_ray.score.stages.write import write_and_commit
from armo_ray.storage.readers import BadRow, Row, UnitRows
from armo_ray.storage.units import Span


class Isolated:
    """The first uncommitted unit of a span. A process that replaces a killed one reads it again."""

    def __init__(self, span: Span, job: Job, scorer: Scorer) -> None:
        self.span, self.job, self.scorer = span, job, scorer

    @cached_property
    def unit(self) -> UnitRows:
        """The rows of the unit. Read on first use, so that an error is raised by a method, not by the constructor."""
        return next(units_of(self.span, self.job))

    def count(self) -> int:
        """The number of rows in the unit."""
        return len(self.unit.rows)

    def attempt(self, start: int, stop: int) -> None:
        """Tokenize and score the rows [start, stop) of the unit. A poison row raises or kills the process."""
        self._score(self.unit.rows[start:stop])

    def finish(self, poison: dict[int, str]) -> Committed:
        """Score and commit the unit. `poison`: why rows are rejected, by their index in the unit."""
        rows = [
            (number, _poisoned(row, poison[i]) if i in poison else row)
            for i, (number, row) in enumerate(self.unit.rows)
        ]
        return write_and_commit(self._score(rows), self.job)

    def _score(self, rows: list[tuple[int, Row]]) -> Any:
        unit = replace(self.unit, rows=rows)
        return self.scorer(
            tokenized(unit, self.span.shard, load_encoder(self.job), self.job, time.perf_counter())
        )


def _poisoned(row: Row, detail: str) -> BadRow:
    return BadRow("poison", detail, to_raw(row))
