"""Runs of consecutive rows from all over an input, for estimates: few bytes are read, and every row is equally likely.

What is left to do is cut into blocks: rows of Parquet units, or the lines of a JSONL shard that begin in a range of
64 KiB (16 KiB if it is compressed). For each kind of file, the input is divided into equal stretches and one block is
drawn from each, always the same one. A compressed shard cannot be read from the middle, so its blocks are read from
its first megabytes.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray.storage.filesystem import Source, in_parallel
from armo_ray.storage.formats import CODECS, KINDS, LINES, PARQUET
from armo_ray.storage.readers import BadRow, Row, rows_in, to_rows, torn
from armo_ray.storage.shards import DAMAGE, Shard, check_read, open_shard
from armo_ray.storage.streams import TORN, chunks, contents
from armo_ray.storage.units import UNIT_BYTES, Span, Unit

_BLOCK_BYTES = 64 << 10
_ZIPPED_BYTES = 16 << 10  # in compressed files, including Parquet, which hold about as much text
_BLOCK_CANDIDATES = 128  # at most: columns that compress well hold a lot of text
_PREFIX_BYTES = 1 << 20  # of a compressed shard; zstd holds back up to 128 KiB of what was read
_REACH_BYTES = 16 << 20  # rows farther into a row group than this cost too much to reach
_FEWEST = 4  # blocks of one kind of file, so that their spread can be estimated


@dataclass(frozen=True)
class Block:
    """Rows [start, start + size) of a unit of a Parquet shard; or the lines of a JSONL shard that begin in that
    range of its bytes. For a compressed shard, `pieces` such ranges of its beginning."""

    shard: Shard
    unit: Unit | None
    start: int
    size: int
    pieces: int = 1


@dataclass(frozen=True)
class Run:
    """The rows of a block, or of a piece of one, which stand for `size` rows of Parquet or bytes of JSONL."""

    rows: list[Row]
    size: float
    exact: bool = True  # whether the footer gives the number of candidates in such rows


@dataclass(frozen=True)
class Stratum:
    """All shards of one kind. `total` is the size of all their blocks, in the unit of `Run.size`."""

    kind: str
    total: float
    complete: bool  # all blocks are drawn
    drawn: list[Block]


def draw(spans: Sequence[Span], count: int, seed: int = 0) -> list[Stratum]:
    """About `count` blocks of what is left to do, shared among the kinds of file in proportion to their bytes."""
    readable = [span for span in spans if span.error is None]
    size = sum(map(_bytes_of, readable))
    strata = []
    for kind in KINDS:
        of_kind = [span for span in readable if span.shard.kind == kind]
        if wholes := [block for span in of_kind for block in _wholes(span)]:
            share = max(_FEWEST, round(count * sum(map(_bytes_of, of_kind)) / max(size, 1)))
            strata.append(_draw(kind, wholes, share, np.random.default_rng(seed)))
    return strata


def _bytes_of(span: Span) -> int:
    return sum(unit.source_bytes for unit in span.units) if span.shard.is_parquet else span.shard.size


def _wholes(span: Span) -> list[Block]:
    if span.shard.is_parquet:
        return [Block(span.shard, unit, 0, unit.num_rows) for unit in span.units if unit.num_rows]
    return [Block(span.shard, None, 0, span.shard.size)] if span.shard.size else []


def _step(whole: Block, kind: str) -> int:
    """How much of a unit or shard is one block."""
    if whole.unit is None:
        return _BLOCK_BYTES if kind == LINES else _ZIPPED_BYTES
    row_bytes = whole.unit.source_bytes // whole.unit.num_rows
    row_candidates = whole.unit.candidates // whole.unit.num_rows
    return max(1, min(_ZIPPED_BYTES // max(row_bytes, 1), _BLOCK_CANDIDATES // max(row_candidates, 1)))


def _draw(kind: str, wholes: list[Block], count: int, rng: np.random.Generator) -> Stratum:
    steps = [_step(whole, kind) for whole in wholes]
    blocks = np.array([-(-whole.size // step) for whole, step in zip(wholes, steps, strict=True)])
    ends = np.cumsum(blocks)
    edges = np.linspace(0, ends[-1], min(count, int(ends[-1])) + 1).astype(np.int64)
    drawn = []
    for k in rng.integers(edges[:-1], edges[1:]).tolist():
        i = int(np.searchsorted(ends, k, side="right"))
        at, size, n = k - int(ends[i] - blocks[i]), wholes[i].size, int(blocks[i])
        start, stop = at * size // n, (at + 1) * size // n  # blocks of equal size, all equally likely
        drawn.append(replace(wholes[i], start=start, size=stop - start))
    complete = len(drawn) == ends[-1]
    if kind not in (PARQUET, LINES):
        drawn = _beginnings(drawn)
    return Stratum(kind, float(sum(whole.size for whole in wholes)), complete, drawn)


def _beginnings(drawn: list[Block]) -> list[Block]:
    """As many pieces of the beginning of each compressed shard as blocks of it were drawn."""
    sizes = {block.shard: block.size for block in drawn}
    pieces = Counter(block.shard for block in drawn)
    return [Block(shard, None, 0, size, pieces[shard]) for shard, size in sizes.items()]


def read_blocks(drawn: Sequence[Block], columns: Sequence[str]) -> list[Run]:
    """The rows of the blocks; for Parquet, only these columns."""

    def read(block: Block) -> list[Run]:
        with open_shard(block.shard) as source:
            try:
                if block.unit is not None:
                    runs = [_parquet(source, block, block.unit, columns)]
                elif block.shard.kind == LINES:
                    runs = [Run(rows_in(_lines(source, block), at_start=block.start == 0), block.size)]
                else:
                    runs = _compressed(source, block)
            except DAMAGE as error:
                source.raise_failure()
                bad = BadRow("unreadable_shard", f"{type(error).__name__}: {error}")
                runs = [Run([bad], block.size)]
        check_read(block.shard)
        return runs

    return [run for runs in in_parallel(read, drawn) for run in runs]


def _parquet(source: Source, block: Block, unit: Unit, columns: Sequence[str]) -> Run:
    file = pq.ParquetFile(source, buffer_size=1 << 20)
    groups = list(range(unit.group_start, unit.group_stop))
    at = unit.skip_rows + block.start
    while at >= (group := file.metadata.row_group(groups[0])).num_rows:
        at -= group.num_rows
        groups.pop(0)
    reach = group.num_rows * _REACH_BYTES // max(group.total_byte_size, 1)
    if at + block.size > max(reach, block.size):
        at %= max(reach - block.size, 1)
    present = [name for name in columns if name in file.schema_arrow.names]
    if not present:
        return Run([{}] * block.size, block.size)
    leaves = [file.schema.column(i) for i in range(len(file.schema))]
    exact = all(leaf.max_repetition_level < 2 for leaf in leaves if leaf.path.split(".")[0] in present)
    rows: list[Row] = []
    for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=present):
        rows += to_rows(batch.slice(at, block.size - len(rows)))
        at = max(at - batch.num_rows, 0)
        if len(rows) == block.size:
            break
    return Run(rows, block.size, exact)


def _lines(source: Source, block: Block) -> bytes:
    """The lines that begin in a range of bytes."""
    before = max(block.start - 1, 0)  # a line may begin at the very start of the block
    source.seek(before)
    content = source.read(block.start + block.size - before)
    if block.start:
        content = content.partition(b"\n")[2]
    pieces, size = [content], len(content)
    while size and not pieces[-1].endswith(b"\n") and size < UNIT_BYTES:
        if not (more := source.read(_BLOCK_BYTES)):
            break
        pieces.append(more[: more.find(b"\n") + 1 or len(more)])
        size += len(pieces[-1])
    return b"".join(pieces)


def _compressed(source: Source, block: Block) -> list[Run]:
    """Pieces of the beginning of a shard: one at a random place in each of as many equal stretches of the decoded text,
    because a line always begins at the very start."""
    size = min(block.shard.size, max(_PREFIX_BYTES, block.pieces * block.size))
    text, broken = _decoded(source, block.shard, size)
    step, fraction = len(text) / block.pieces, min(1.0, block.pieces * block.size / size)
    shifts = (1 - fraction) * np.random.default_rng(int(block.shard.hash, 16)).random(block.pieces)
    bounds = [
        (round((k + u) * step), round((k + u + fraction) * step)) for k, u in enumerate(shifts.tolist())
    ]
    rows = [rows_in(_begun(text, start, stop), at_start=start == 0) for start, stop in bounds]
    rows[-1] += broken
    return [Run(own, fraction * size / block.pieces) for own in rows]


def _begun(text: bytes, start: int, stop: int) -> bytes:
    """The lines that begin in [start, stop)."""
    first, end = (text.find(b"\n", at - 1) + 1 or len(text) if at else 0 for at in (start, stop))
    return text[first:end]


def _decoded(source: Source, shard: Shard, size: int) -> tuple[bytes, list[BadRow]]:
    """The whole lines in the first bytes of a compressed shard, and what stands for the rest of one that breaks off."""
    whole = size == shard.size
    stream = contents(shard, source) if whole else _prefix(source, shard, size)
    pieces: list[bytes] = []
    error = None
    try:
        pieces.extend(islice(stream, UNIT_BYTES >> 20))
        whole = whole and next(stream, None) is None
    except TORN as caught:
        source.raise_failure()
        error = caught if whole else None
        whole = False
    text = b"".join(pieces)
    text = text if whole else text[: text.rfind(b"\n") + 1]
    return text, [torn(text.count(b"\n"), error)] if error else []


def _prefix(source: Source, shard: Shard, size: int) -> Iterator[bytes]:
    return chunks(pa.CompressedInputStream(pa.BufferReader(source.read(size)), CODECS[shard.kind]))
