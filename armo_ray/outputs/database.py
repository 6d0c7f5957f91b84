"""DuckDB with bounded memory, over outputs in any storage."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import duckdb

from armo_ray.errors import ConfigError
from armo_ray.outputs.options import ScoresOptions
from armo_ray.outputs.scores import literal
from armo_ray.storage.local_files import Opened
from armo_ray.storage.scratch import scratch_directory


@dataclass
class _Shared:
    """A database that is closed after the last of its users."""

    con: duckdb.DuckDBPyConnection
    closes: ExitStack
    users: int = 0


_open: dict[tuple[object, ...], _Shared] = {}
_lock = Lock()


@contextmanager
def database(options: ScoresOptions) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection with bounded memory that reads any storage; its errors become RuntimeError.

    Connections of the same options that are open at the same time, in any threads, share one database and its memory.
    Temporary tables belong to a connection. Raises ConfigError if --spill is not a directory.
    """
    if options.spill is not None and not Path(options.spill).is_dir():
        raise ConfigError(f"spill {options.spill}: no such directory")
    try:
        with _shared(options) as shared, closing(shared.cursor()) as con:
            yield con
    except duckdb.OutOfMemoryException as error:
        raise RuntimeError(f"--memory {options.memory} is not enough: {error}") from None
    except duckdb.Error as error:
        raise RuntimeError(str(error)) from None


@contextmanager
def _shared(options: ScoresOptions) -> Iterator[duckdb.DuckDBPyConnection]:
    """The database of these options: to open one takes as long as a small query."""
    key = (options.memory, options.threads, options.spill)
    with _lock:
        shared = _open[key] = _open.get(key) or _opened(options)
        shared.users += 1
    try:
        yield shared.con
    finally:
        with _lock:
            shared.users -= 1
            if not shared.users:
                del _open[key]
                shared.closes.close()


def _opened(options: ScoresOptions) -> _Shared:
    closes = ExitStack()
    try:
        spill = closes.enter_context(scratch_directory(options.spill))
        con = closes.enter_context(closing(duckdb.connect()))
        con.register_filesystem(Opened())
        con.execute(f"SET memory_limit = {literal(options.memory)}")
        con.execute(f"SET temp_directory = {literal(str(spill))}")
        con.execute("SET preserve_insertion_order = false")
        con.execute("SET parquet_metadata_cache = true")  # tasks open the same files again
        if options.threads:
            con.execute(f"SET threads = {options.threads}")
    except BaseException:
        closes.close()
        raise
    return _Shared(con, closes)
