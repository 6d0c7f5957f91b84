"""Digests of the bytes that a unit was read from: 128-bit BLAKE2b, in hex."""

import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from armo_ray.storage.filesystem import Source

_PIECE = 1 << 20


class LineDigest:
    """The digest of the lines of a unit and of the distance from each line to the one before it."""

    def __init__(self, first_row: int) -> None:
        self.at = first_row
        self._hash = _new()

    def add(self, number: int, line: bytes) -> None:
        self._hash.update(b"%d\n" % (number - self.at))
        self._hash.update(line)
        self._hash.update(b"\n")
        self.at = number

    @property
    def hex(self) -> str:
        return str(self._hash.hexdigest())


def of_row_groups(source: Source, file: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str]) -> str:
    """The digest of the stored bytes of some columns of row groups, in file order.

    Raises OSError if they cannot be read.
    """
    digest = _new()
    for group in (file.metadata.row_group(i) for i in groups):
        if not group.num_rows:
            continue  # it holds no rows of any unit
        digest.update(f"{group.num_rows} rows\n".encode())
        for i in range(group.num_columns):
            chunk, kind = group.column(i), file.schema.column(i)
            if any(f"{chunk.path_in_schema}.".startswith(f"{column}.") for column in columns):
                name = (
                    f"{chunk.path_in_schema} {kind.physical_type} {kind.converted_type} {chunk.num_values}\n"
                )
                digest.update(name.encode())
                _add(digest, source, chunk)
    return str(digest.hexdigest())


def _add(digest: Any, source: Source, chunk: pq.ColumnChunkMetaData) -> None:
    """Add the pages of a column chunk to a digest. A dictionary page, if there is one, comes first."""
    pages = (chunk.dictionary_page_offset, chunk.data_page_offset)
    source.seek(min(at for at in pages if at is not None))
    left = chunk.total_compressed_size
    while left > 0 and (piece := source.read(min(left, _PIECE))):
        digest.update(piece)
        left -= len(piece)


def _new() -> Any:
    return hashlib.blake2b(digest_size=16)
