"""Writing and reading the parts of a unit. The name of a part depends only on its unit."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray.errors import ConfigError
from armo_ray.storage.json_files import digest_of
from armo_ray.storage.records import PartEntry
from armo_ray.storage.shards import Shard
from armo_ray.storage.store import Store

SCORES, REJECTS = "scores", "rejects"
HIDDEN, PROMPTS = (
    "hidden",
    "prompts",
)  # of hidden states: of candidates in the place of scores, and of prompts
_UNIQUE = {"row_id", "row_id_chosen", "row_id_rejected"}  # columns whose values hardly repeat
DATA = "data"  # folder of a dataset that is not an output of scores
_LONGEST_NAME, _LONGEST_PATH, _LONGEST_ROOT = 255, 384, 192
NULL = "__HIVE_DEFAULT_PARTITION__"


def write_scores(
    store: Store,
    unit: str,
    scores: pa.Table,
    fixed: Sequence[tuple[str, str]],
    by: Sequence[str],
    folder: str = SCORES,
) -> list[PartEntry]:
    """Write scored rows below the hive directories of `fixed`, then of their own values in the columns `by`."""
    by = [name for name in by if name not in dict(fixed)]
    parts = []
    for values, rows in _split(scores, by):
        input_values = ((name, None if value == NULL else value) for name, value in fixed)
        folders = [hive(name, value) for name, value in (*input_values, *values.items())]
        name = "/".join([folder, *folders, f"part-{unit}.parquet"])
        parts.append(write_table(store, name, rows))
    return parts


def write_rejects(store: Store, unit: str, rejects: pa.Table) -> list[PartEntry]:
    """Write the rejects of a unit, if there are any."""
    return [write_table(store, f"{REJECTS}/part-{unit}.parquet", rejects)] if rejects.num_rows else []


def write_prompts(store: Store, unit: str, prompts: pa.Table) -> list[PartEntry]:
    """Write the prompts of a unit, if there are any."""
    return [write_table(store, f"{PROMPTS}/part-{unit}.parquet", prompts)] if prompts.num_rows else []


def fit_directories(values: Iterable[tuple[str, Any]]) -> bool:
    """Whether nested hive directories for these values are short enough.

    Most filesystems allow 255 bytes per name; all names together must leave room in the 1024 bytes of an S3 key.
    """
    lengths = [len(hive(name, value)) for name, value in values]
    return max(lengths, default=0) <= _LONGEST_NAME and sum(lengths) + len(lengths) <= _LONGEST_PATH


def check_directories(store: Store, shards: Iterable[Shard]) -> None:
    """Raises ConfigError if the directories of a shard are too long to be repeated in the output."""
    for shard in shards:
        if not fit_directories(shard.partitions) or len(store.root) > _LONGEST_ROOT:
            raise ConfigError(
                f"output {store.uri}: the directories of {shard.uri} are too long to be repeated there: "
                f"at most {_LONGEST_NAME} bytes each and {_LONGEST_PATH} together (characters other than letters, "
                f"digits and _.-~ count as three bytes or more), and {_LONGEST_ROOT} for the path of the output"
            )


def hive(name: str, value: Any) -> str:
    """The directory name of a value. Special characters are escaped, and so is a text that would read as null."""
    text = f"%5F{NULL[1:]}" if value == NULL else quote(str(value), safe="")
    return f"{quote(name, safe='')}={NULL if value is None else text}"


def hive_values(path: str) -> list[tuple[str, str | None]]:
    """The names and values of the hive directories in a path; None is null."""
    pairs = [folder.partition("=") for folder in path.split("/")[:-1]]
    return [(unquote(n), None if value == NULL else unquote(value)) for n, sign, value in pairs if sign]


def with_directories(table: pa.Table, path: str, columns: Collection[str] | None = None) -> pa.Table:
    """The rows of a part with the hive directories in its path as columns of text: those among `columns`, or all."""
    for name, value in hive_values(path):
        if name not in table.column_names and (columns is None or name in columns):
            table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
    return table


def _split(table: pa.Table, by: Sequence[str]) -> list[tuple[Mapping[str, Any], pa.Table]]:
    if not by:
        return [({}, table)] if table.num_rows else []
    keys = table.select(by).append_column("__row", pa.array(range(table.num_rows), pa.int64()))
    grouped = keys.group_by(list(by), use_threads=False).aggregate([("__row", "list")])
    rows = table.drop_columns(list(by))
    return [
        ({name: entry[name] for name in by}, rows.take(pa.array(entry["__row_list"])))
        for entry in grouped.to_pylist()
    ]


def _leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """The leaf columns that Parquet stores for a column: paths and types."""
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(f"{path}.{field.name}", field.type)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    else:
        yield path, kind


def _is_numbers(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_fixed_size_binary(kind))


def put(store: Store, name: str, content: bytes, rows: int) -> PartEntry:
    """Write one part of `rows` rows."""
    store.write(name, content)
    return PartEntry(name, rows, len(content), digest_of(content))


def as_written(store: Store, part: PartEntry) -> PartEntry:
    """The entry of a part, updated to its present file: this or another worker may have written it again."""
    content = store.read(part.path)
    return replace(part, bytes=len(content), digest=digest_of(content))


def write_table(store: Store, name: str, table: pa.Table) -> PartEntry:
    """Write rows as one part."""
    return put(store, name, parquet(table), table.num_rows)


def parquet(table: pa.Table) -> bytes:
    """Rows as the content of a Parquet file."""
    sink = pa.BufferOutputStream()  # a stream of Python would be called for every page
    # floats rarely repeat: without dictionaries for them files are a fifth smaller, and written in half the time
    repeated = [
        path
        for f in table.schema
        for path, kind in _leaves(f.name, f.type)
        if not _is_numbers(kind) and f.name not in _UNIQUE
    ]
    # readers skip row groups by plain columns; of the many fields of rewards, statistics would cost more than they save
    plain = [
        f.name
        for f in table.schema
        if not pa.types.is_nested(f.type) and not pa.types.is_fixed_size_binary(f.type)
    ]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        store_schema=True,
        use_dictionary=repeated,
        write_statistics=plain,
        write_page_checksum=True,
    )
    content: bytes = sink.getvalue().to_pybytes()
    return content


def read_part(store: Store, part: PartEntry, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a committed part. Raises RuntimeError if its file is not the one that was committed."""
    content = read_content(store, part)
    try:
        # nothing to buffer ahead of, and pages of content with the right digest need no other check
        file = pq.ParquetFile(
            pa.BufferReader(content), pre_buffer=False, page_checksum_verification=part.digest is None
        )
        # parts are small: this takes a third of the time that threads take
        table = file.read(None if columns is None else list(columns), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(store, part, f"cannot be read: {error}") from error
    if table.num_rows != part.rows:
        raise _damaged(store, part, f"{table.num_rows} rows, its commit says {part.rows}")
    return table


def read_content(store: Store, part: PartEntry) -> bytes:
    """The bytes of a committed part. Raises RuntimeError if they are not the ones that were committed."""
    try:
        content = store.read(part.path)
    except OSError as error:
        raise _damaged(store, part, f"cannot be read: {error}") from error
    if fault := difference(content, part):
        raise _damaged(store, part, fault)
    return content


def difference(content: bytes, part: PartEntry) -> str | None:
    """How bytes differ from the committed part, or None. Parts of earlier versions have no digest: size is compared."""
    if len(content) != part.bytes:
        return f"{len(content)} bytes, its commit says {part.bytes}"
    if part.digest not in (None, digest_of(content)):
        return "its bytes are not those that were committed"
    return None


def _damaged(store: Store, part: PartEntry, fault: str) -> RuntimeError:
    return RuntimeError(f"{store.uri}/{part.path}: {fault}. Check it with armo-ray verify")
