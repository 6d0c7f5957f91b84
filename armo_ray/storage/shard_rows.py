"""Reading rows of a shard outside a run: all of them, or those with given row numbers."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace

from armo_ray.storage.readers import BadRow, Row, parse, read_lines, read_units
from armo_ray.storage.shards import Shard, check_read
from armo_ray.storage.units import UNIT_BYTES, Unit, cut

NumberedRows = list[tuple[int, Row]]

_BATCH_ROWS = 2048


def read_shard(
    shard: Shard,
    columns: Sequence[str],
    candidate_columns: Mapping[str, bool],
    numbers: Set[int] | None = None,
    batch_rows: int = _BATCH_ROWS,
) -> Iterator[NumberedRows]:
    """Batches of the rows of a shard with their numbers, in order; only the rows in `numbers` if it is given.

    A Parquet shard whose footer cannot be read gives one row, a BadRow, whatever `numbers` is. Where reading breaks off
    later, the BadRow stands for the rows after it and is given only if its number is in `numbers`.

    Args:
        columns: the columns to read from a Parquet shard.
        candidate_columns: the columns of a Parquet shard that hold candidates, as `units.cut` takes them.
        batch_rows: size of a batch: candidates of a Parquet shard (approximately), or the most lines of JSONL.

    Raises ConfigError if the shard cannot be opened, and OSError if it changes while it is read.
    """
    if not shard.is_parquet:
        yield from _read_lines(shard, numbers, batch_rows)
        return
    (span,) = cut([shard], "", batch_rows, candidate_columns)
    if numbers is not None and span.error is None:
        span = replace(span, units=_holding(span.units, sorted(numbers)))
    for unit in read_units(span, columns, lambda row: 1, batch_rows, ""):
        rows = [
            (number, row)
            for number, row in unit.rows
            if numbers is None or number in numbers or span.error is not None
        ]
        if rows:
            yield rows


def _holding(units: Sequence[Unit], numbers: list[int]) -> tuple[Unit, ...]:
    """The units that hold at least one of the rows with these sorted numbers."""
    return tuple(
        unit
        for unit in units
        if bisect_left(numbers, unit.first_row) < bisect_left(numbers, unit.first_row + unit.num_rows)
    )


def _read_lines(shard: Shard, numbers: Set[int] | None, batch_rows: int) -> Iterator[NumberedRows]:
    """Read lines in batches. Only the lines in `numbers` are parsed, and reading ends after the last of them."""
    last = None if numbers is None else max(numbers, default=-1)
    rows: NumberedRows = []
    size = 0
    for number, line, _ in read_lines(shard):
        if last is not None and number > last:
            break
        if numbers is None or number in numbers:
            rows.append((number, line if isinstance(line, BadRow) else parse(line)))
            size += len(line) if isinstance(line, bytes) else 0
        if len(rows) >= batch_rows or size >= UNIT_BYTES:
            check_read(shard)
            yield rows
            rows, size = [], 0
    check_read(shard)
    if rows:
        yield rows
