"""Reading the rows of units: each shard once from start to end, in bounded memory."""

import codecs
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray.storage import digest
from armo_ray.storage.filesystem import Source
from armo_ray.storage.formats import CODECS, LINES, LINES_GZ, LINES_ZST, oddity
from armo_ray.storage.json_files import unique_keys
from armo_ray.storage.shards import DAMAGE, Shard, check_read, open_shard
from armo_ray.storage.streams import CHUNK, TORN, contents
from armo_ray.storage.units import UNIT_BYTES, Span, Unit, unit_id

logger = logging.getLogger(__name__)

_HEAD_BYTES = 1 << 12
_BEGINS = {LINES_GZ: b"\x1f\x8b", LINES_ZST: b"\x28\xb5\x2f\xfd"}
_NOT_BLANK = re.compile(rb"\S")
_MOST_ROWS = 16  # rows of a unit per candidate of `unit_rows`: limits the rows without candidates in a unit
_MOST_LEVELS = 200  # of nested JSON: Python's own limit depends on the call stack


class BadRow(NamedTuple):
    """A row that cannot be read: the reject reason, the detail, and the text of the row if it was read."""

    reason: str
    detail: str
    raw: str | None = None


Row = dict[str, Any] | BadRow


@dataclass
class UnitRows:
    """The rows of a unit with their numbers in the shard (0-based; line numbers in a JSONL shard).

    `content` is a digest of the bytes they were read from, if the shard's identity holds a modification time.
    """

    unit: Unit
    rows: list[tuple[int, Row]] = field(default_factory=list)
    content: str | None = None
    unselected: int = 0  # rows that the run does not read


def read_units(
    span: Span, columns: Sequence[str], count: Callable[[Row], int], unit_rows: int, fingerprint: str
) -> Iterator[UnitRows]:
    """The rows of the units of a span that are not done, unit by unit.

    Args:
        columns: the columns to read from a Parquet shard.
        count: the number of candidates in a row. A unit of JSONL lines ends when it has `unit_rows` of them.

    Raises OSError if the shard changes while it is read.
    """
    if span.error is not None:
        units = iter([UnitRows(span.units[0], [(0, BadRow("unreadable_shard", span.error))])])
    elif span.shard.is_parquet:
        units = _read_parquet(span, columns)
    else:
        units = _read_jsonl(span, count, unit_rows, fingerprint)
    for unit in units:
        check_read(span.shard)  # a shard that changed may look damaged: check for the change first
        yield unit


def _read_parquet(span: Span, columns: Sequence[str]) -> Iterator[UnitRows]:
    with open_shard(span.shard) as source:
        file = pq.ParquetFile(source)
        present = [name for name in columns if name in file.schema_arrow.names]
        for units in _consecutive(span.units):
            yield from _read_groups(span.shard, source, file, units, present)


def _consecutive(units: Sequence[Unit]) -> list[list[Unit]]:
    """Units that begin in the same row group, together, so that it is decoded once."""
    together: list[list[Unit]] = []
    for unit in units:
        if together and unit.group_start == together[-1][-1].group_start:
            together[-1].append(unit)
        else:
            together.append([unit])
    return together


def _read_groups(
    shard: Shard, source: Source, file: pq.ParquetFile, units: list[Unit], columns: list[str]
) -> Iterator[UnitRows]:
    groups = list(range(units[0].group_start, units[0].group_stop))
    at = 0  # rows of the row groups that come before the next batch
    waiting = [UnitRows(unit) for unit in units]
    try:
        if shard.is_timed:
            content = digest.of_row_groups(source, file, groups, columns)
            waiting = [UnitRows(unit, content=content) for unit in units]
        if not columns:  # the shard has none of the columns: its rows are empty, but still rows
            batches: Iterator[pa.RecordBatch] = iter(())
            for done in waiting:
                done.rows = [(done.unit.first_row + k, {}) for k in range(done.unit.num_rows)]
        else:
            size = max(1, min(1024, *(unit.num_rows for unit in units), 1024))  # at most one unit at a time
            batches = file.iter_batches(batch_size=size, row_groups=groups, columns=columns)
        for batch in batches:
            rows = to_rows(batch)
            for done in waiting:
                start = done.unit.skip_rows + len(done.rows) - at
                stop = min(done.unit.skip_rows + done.unit.num_rows - at, len(rows))
                if 0 <= start < stop:
                    first = done.unit.first_row + len(done.rows)
                    done.rows += list(enumerate(rows[start:stop], first))
            at += len(rows)
            while waiting and len(waiting[0].rows) == waiting[0].unit.num_rows:
                yield waiting.pop(0)
        yield from (done for done in waiting if len(done.rows) == done.unit.num_rows)
    except DAMAGE as error:
        source.raise_failure()
        for done in waiting:
            missing = done.unit.num_rows - len(done.rows)
            detail = f"{missing} rows of this unit cannot be read: {type(error).__name__}: {error}"
            done.rows.append((done.unit.first_row + len(done.rows), BadRow("unreadable_shard", detail)))
            yield done


def to_rows(batch: pa.RecordBatch) -> list[Row]:
    """The rows of a batch. A value that Python cannot hold, such as text that is not UTF-8, makes only its row bad."""
    try:
        rows: list[Row] = batch.to_pylist()
        return rows
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [BadRow("malformed_row", f"{type(error).__name__}: {error}")]
        return [row for i in range(batch.num_rows) for row in to_rows(batch.slice(i, 1))]


def _read_jsonl(
    span: Span, count: Callable[[Row], int], unit_rows: int, fingerprint: str
) -> Iterator[UnitRows]:
    ordinal = candidates = size = position = here = 0
    rows: list[tuple[int, Row]] = []
    content = digest.LineDigest(0)
    first = 0

    def unit(last: bool) -> UnitRows:
        current = Unit(
            id=unit_id(span.shard, fingerprint, str(ordinal)),
            ordinal=ordinal,
            first_row=first,
            num_rows=len(rows),
            last=last,
            source_bytes=here - position,
        )
        return UnitRows(current, rows, content.hex if span.shard.is_timed else None)

    for number, line, here in read_lines(span.shard):
        # a full unit is yielded when another line follows: only then it is known not to be the last
        if candidates >= unit_rows or size >= UNIT_BYTES or len(rows) >= _MOST_ROWS * unit_rows:
            if ordinal not in span.done:
                yield unit(last=False)
                position = here
            ordinal, candidates, size, rows, first = ordinal + 1, 0, 0, [], number
            content = digest.LineDigest(first)
        row = line if isinstance(line, BadRow) else parse(line)
        rows.append((number, row))
        candidates += count(row)
        if isinstance(line, bytes):
            size += len(line)
        if span.shard.is_timed:
            content.add(number, text_of(line))
    if ordinal not in span.done:
        yield unit(last=True)


def text_of(line: bytes | BadRow) -> bytes:
    """The bytes of a line that go into a digest; for a line that cannot be read, the reason."""
    return line.detail.encode() if isinstance(line, BadRow) else line


def parse(line: bytes) -> Row:
    """The object in a line of JSON, or a BadRow."""
    try:
        row = json.loads(line, object_pairs_hook=unique_keys)
        fault = "" if isinstance(row, dict) else f"expected a JSON object, found {type(row).__name__}"
        if line.count(b"[") + line.count(b"{") > _MOST_LEVELS and _is_deep(row):
            fault = f"not valid JSON: nested more than {_MOST_LEVELS} levels deep"
    except (ValueError, RecursionError) as error:
        fault = f"not valid JSON: {error}"
    return BadRow("malformed_row", fault, line.decode("utf-8", "replace")) if fault else row


def _is_deep(value: Any) -> bool:
    """Whether lists and objects are nested more than `_MOST_LEVELS` levels deep."""
    level = [value]
    for _ in range(_MOST_LEVELS):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def read_lines(shard: Shard, limit: int | None = None) -> Iterator[tuple[int, bytes | BadRow, int]]:
    """The lines that are not blank, with their numbers and the bytes of the shard read so far.

    A truncated shard ends with a BadRow. `limit` is the number of bytes to read, after decompression.
    """
    number = at = pending_size = done = 0
    pending: list[bytes] = []
    with open_shard(shard) as source:
        try:
            for chunk in contents(shard, source):
                before, share = at, (source.tell() - at) / len(chunk)
                first, last = chunk.find(b"\n"), chunk.rfind(b"\n")
                if first >= 0:
                    at = before + int((first + 1) * share)
                    yield from _joined(number, [*pending, chunk[:first]], pending_size + first, at)
                    pending, pending_size, number, seen = [], 0, number + 1, first + 1
                    for start, stop in texts(chunk, first + 1, last):
                        number += chunk.count(b"\n", seen, seen := start)
                        at = before + int((stop + 1) * share)
                        yield number, chunk[start:stop].rstrip(), at
                    number += chunk.count(b"\n", seen, last + 1)
                at = before + int(len(chunk) * share)
                pending_size += len(chunk) - last - 1
                pending = [*pending, chunk[last + 1 :]] if pending_size <= UNIT_BYTES else []
                done += len(chunk)
                if limit is not None and done >= limit:
                    logger.warning("%s: only its first %d MiB are read", shard.uri, done >> 20)
                    return
        except TORN as error:
            source.raise_failure()
            yield number, torn(number, error), at
            return
    yield from _joined(number, pending, pending_size, at)


def torn(number: int, error: Exception) -> BadRow:
    """What stands for line `number` (0-based) and all after it, if a shard breaks off there."""
    return BadRow("unreadable_shard", f"breaks off at line {number + 1}: {type(error).__name__}: {error}")


def oddity_of(shard: Shard) -> str | None:
    """What is wrong with a JSONL shard that holds no row: what it is instead, or the fault of its first line."""
    with open_shard(shard) as source:
        head = bytes(source.read(_HEAD_BYTES))
    if shard.kind in CODECS and head and not head.startswith(_BEGINS[shard.kind]):
        return f"it is not a {CODECS[shard.kind]} file, although its name says so"
    if shard.kind == LINES and (fault := oddity(head)):
        return fault
    for _, line, _ in read_lines(shard, CHUNK):
        row = line if isinstance(line, BadRow) else parse(line)
        if isinstance(row, BadRow):
            odd = oddity(line) if isinstance(line, bytes) else None
            return odd or row.detail
    return None


def texts(content: bytes, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The start and end of each line of content[start:stop] that is not blank, without leading white space."""
    while start < stop and (match := _NOT_BLANK.search(content, start, stop)):
        start = match.start()
        end = content.find(b"\n", start, stop)
        yield start, end if end >= 0 else stop
        start = end + 1 if end >= 0 else stop


def rows_in(content: bytes, at_start: bool) -> list[Row]:
    """The rows of some lines of a JSONL shard; blank lines have none. `at_start`: the first is that of the shard."""
    end = content.find(b"\n") + 1 or len(content)
    rest = (content[start:stop].rstrip() for start, stop in texts(content, end, len(content)))
    return [parse(line) for line in (_stripped(content[:end], at_start), *rest) if line]


def _stripped(line: bytes, at_start: bool) -> bytes:
    """A line without white space around it, and without the byte order mark with which a shard may begin."""
    line = line.strip()
    return line.removeprefix(codecs.BOM_UTF8).lstrip() if at_start else line


def _joined(
    number: int, pieces: list[bytes], size: int, at: int
) -> Iterator[tuple[int, bytes | BadRow, int]]:
    """A line that was read in pieces, unless it is blank; `size` is their length in bytes."""
    if size > UNIT_BYTES:
        yield number, BadRow("malformed_row", f"a line of more than {UNIT_BYTES >> 20} MiB"), at
        return
    if line := _stripped(b"".join(pieces), at_start=number == 0):
        yield number, line, at


def read_rows(shard: Shard, unit: Unit, columns: Sequence[str], numbers: set[int]) -> dict[int, Row]:
    """Read some rows of a unit again, by number: the few that failed after their text was dropped."""
    rows: dict[int, Row] = {}
    if shard.is_parquet:
        units = _read_parquet(Span(shard, (unit,)), columns)
        rows = {number: row for done in units for number, row in done.rows if number in numbers}
    else:
        for number, line, _ in read_lines(shard):
            if number in numbers:
                rows[number] = line if isinstance(line, BadRow) else parse(line)
            if number >= max(numbers):
                break
    check_read(shard)
    return rows


def sample(shard: Shard, num_rows: int) -> tuple[list[str], pa.Schema | None, list[dict[str, Any]]]:
    """The column names of a shard, its Arrow schema if it is Parquet, and its first rows if it is JSONL.

    Reads at most 64 MiB of text.
    """
    if shard.is_parquet:
        with open_shard(shard) as stream:
            schema = pq.ParquetFile(stream).schema_arrow
        check_read(shard)
        return schema.names, schema, []
    rows: list[dict[str, Any]] = []
    for seen, (_, line, _) in enumerate(read_lines(shard, UNIT_BYTES)):
        row = line if isinstance(line, BadRow) else parse(line)
        if isinstance(row, dict):
            rows.append(row)
        if len(rows) == num_rows or seen == 10 * num_rows:
            break
    check_read(shard)
    return list(dict.fromkeys(name for row in rows for name in row)), None, rows
