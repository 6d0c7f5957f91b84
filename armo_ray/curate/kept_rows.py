"""Reads the rows of parts that are kept, by DuckDB where it returns the same as Arrow and is faster."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray.outputs.database import database
from armo_ray.outputs.options import ScoresOptions
from armo_ray.outputs.scores import literal
from armo_ray.storage.local_files import readable
from armo_ray.storage.parts import read_content, read_part
from armo_ray.storage.records import PartEntry
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)

_BATCH_BYTES = 4 << 20  # of a batch as it is compressed in parts
_BATCH_ROWS = 1 << 11, 1 << 14  # the least that DuckDB returns, and the most from which a batch gains
_ROW_BYTES = 8 << 10  # on average in a part, above which Arrow is as fast
Bits = npt.NDArray[np.bool_]


def kept_rows(
    store: Store, parts: Sequence[PartEntry], packed: Mapping[str, bytes], options: ScoresOptions
) -> Iterator[pa.Table]:
    """The kept rows of each part, in their order, a table per part.

    Raises RuntimeError if a part is not the one that was committed.

    Args:
        packed: by URI of a part, bits of its rows, set for those to keep.
        options: of the database that reads them.
    """
    bits = [_unpacked(packed[f"{store.uri}/{part.path}"], part.rows) for part in parts]
    schema, num_read = _exact_schema(store, parts), 0
    if schema is not None:
        try:
            for table in _read_all(store, parts, bits, schema, options):
                num_read += 1
                yield table
        except (RuntimeError, OSError, pa.ArrowException) as error:  # as it needs more memory than Arrow
            logger.debug("%s: DuckDB: %s", store.uri, error)
    for part, keep in zip(parts[num_read:], bits[num_read:], strict=True):
        yield read_part(store, part).take(pa.array(np.flatnonzero(keep)))  # a mask would take twice as long


def _unpacked(packed: bytes, rows: int) -> Bits:
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=rows).astype(bool)


def _exact_schema(store: Store, parts: Sequence[PartEntry]) -> pa.Schema | None:
    """The schema of the parts, whose digests are checked; None if DuckDB may not read them, or not as they are."""
    schema, first = None, None
    for part in parts:
        path = store.path(part.path)
        if not store.local or readable(path) != path:
            return None
        try:
            file = pq.read_metadata(pa.BufferReader(read_content(store, part)))
        except pa.ArrowException:
            return None
        if first is None:
            first, schema = file, file.schema.to_arrow_schema()
            if not _is_exact(pa.struct(list(schema))):
                return None
        is_like_first = file.metadata == first.metadata and file.schema.equals(first.schema)
        if not is_like_first or file.num_rows != part.rows or _num_bytes(file) > _ROW_BYTES * part.rows:
            return None
    return schema


def _num_bytes(file: pq.FileMetaData) -> int:
    return sum(file.row_group(i).total_byte_size for i in range(file.num_row_groups))


def _is_exact(kind: pa.DataType) -> bool:
    """Whether DuckDB returns the values of a type bit by bit, and all of its fields: it ignores the case of names."""
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        is_told_apart = len({field.name.lower() for field in fields}) == len(fields) > 0
        return is_told_apart and all(_is_exact(field.type) for field in fields)
    if pa.types.is_list(kind):
        return _is_exact(kind.value_type)
    is_number = pa.types.is_integer(kind) or kind in (pa.float32(), pa.float64())
    return bool(is_number or pa.types.is_boolean(kind) or pa.types.is_string(kind))


def _read_all(
    store: Store, parts: Sequence[PartEntry], bits: Sequence[Bits], schema: pa.Schema, options: ScoresOptions
) -> Iterator[pa.Table]:
    files = ", ".join(literal(store.path(part.path)) for part in parts)
    kept = pa.table({"keep": np.concatenate(bits)})
    with database(options) as con:
        con.execute("SET SESSION preserve_insertion_order = true")  # which is off for all others
        con.register("kept", kept)
        read = con.sql(
            f"SELECT rows.* FROM read_parquet([{files}], hive_partitioning = false) rows "
            f"POSITIONAL JOIN kept WHERE kept.keep"
        )
        least, most = _BATCH_ROWS
        rows_at_once = _BATCH_BYTES * len(kept) // sum(part.bytes for part in parts)
        batches = read.to_arrow_reader(min(max(rows_at_once, least), most))
        rows = schema.empty_table()
        for kept_of_part in (int(keep.sum()) for keep in bits):
            while rows.num_rows < kept_of_part:
                batch = pa.Table.from_batches([next(batches)]).cast(schema)
                rows = pa.concat_tables([rows, batch])
            yield rows.slice(0, kept_of_part)
            rows = rows.slice(kept_of_part)
