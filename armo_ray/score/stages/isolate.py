"""Units that failed in the graph, scored row by row in a separate process that they may kill."""

import time
from dataclasses import replace
from functools import lru_cache
from typing import Any

from armo_ray.score.job import ModelJob
from armo_ray.score.passes import Committed
from armo_ray.score.stages.read import load_encoder, tokenized, units_of
from armo_ray.score.stages.score import Scorer
from armo_ray.score.stages.unit_block import to_raw
from armo_ray.score.stages.write import write_and_commit
from armo_ray.storage.readers import BadRow, Row
from armo_ray.storage.units import Span


class Isolated:
    """Scores the first uncommitted unit of a span. A process that replaces a killed one reads the unit again."""

    def __init__(self, job: ModelJob, scorer: Scorer) -> None:
        self.job, self.scorer = job, scorer
        # read by the first method, so that an error is not raised by the constructor
        self.unit = lru_cache(maxsize=1)(lambda span: next(units_of(span, job)))

    def count(self, span: Span) -> int:
        """The number of rows in the unit."""
        return len(self.unit(span).rows)

    def attempt(self, span: Span, start: int, stop: int) -> None:
        """Tokenize and score the rows [start, stop) of the unit. A poison row raises or kills the process."""
        self._score(span, self.unit(span).rows[start:stop])

    def finish(self, span: Span, poison: dict[int, str]) -> Committed:
        """Score and commit the unit. `poison`: why rows are rejected, by their index in the unit."""
        rows = [
            (number, _poisoned(row, poison[i]) if i in poison else row)
            for i, (number, row) in enumerate(self.unit(span).rows)
        ]
        return write_and_commit(self._score(span, rows), self.job)

    def _score(self, span: Span, rows: list[tuple[int, Row]]) -> Any:
        unit = replace(self.unit(span), rows=rows)
        return self.scorer(tokenized(unit, span.shard, load_encoder(self.job), self.job, time.perf_counter()))


def _poisoned(row: Row, detail: str) -> BadRow:
    return BadRow("poison", detail, to_raw(row))
