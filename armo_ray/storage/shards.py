"""Finding and opening the shards of an input: files that are read, never written."""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from armo_ray.errors import ConfigError
from armo_ray.storage.filesystem import S3, Source, check_input, is_remote, open_filesystem, speaks, uri_of
from armo_ray.storage.formats import ENDINGS, LINES, PARQUET, advice, is_read, kind_of
from armo_ray.storage.listing import BROKEN, READ, File, Listing, list_files
from armo_ray.storage.retries import describe_error, patiently

logger = logging.getLogger(__name__)

_VERSION_KEYS = ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified")
# read-ahead: lines are read in order, but the bytes after a column of a Parquet file are rarely needed
_AHEAD_BYTES, _PARQUET_AHEAD_BYTES = 4 << 20, 64 << 10
_RUN_AGAIN = "What was read from it is not committed. Once it is complete, run the same command again"
DAMAGE = (OSError, pa.ArrowException, UnicodeDecodeError)  # what reading a damaged file raises


@dataclass(frozen=True)
class Shard:
    """One input file. `identity` is part of the ids of its units, and changes whenever the content does."""

    uri: str
    size: int  # bytes
    identity: str
    partitions: tuple[tuple[str, str], ...]  # names and values of the hive directories in its path
    stamp: str | None = None  # its present identity, if only the modification time has changed

    @property
    def hash(self) -> str:
        """16 hex digits, a hash of the URI; every unit id of the shard begins with them."""
        return hash_of(self.uri)

    @property
    def is_timed(self) -> bool:
        """Whether its identity holds a modification time, which can change without the content."""
        return not is_remote(self.uri)

    @property
    def is_parquet(self) -> bool:
        return self.kind == PARQUET

    @property
    def kind(self) -> str:
        """One of `formats.KINDS`."""
        return kind_of(self.uri) or LINES


def hash_of(uri: str) -> str:
    """16 hex digits: a hash of a shard's URI."""
    return hashlib.blake2b(uri.encode(), digest_size=8).hexdigest()


def row_id(uri: str, row: int | None, candidate: int | None) -> str | None:
    """The id by which `armo-ray explain` finds a candidate or a whole row; None for a whole shard."""
    if row is None:
        return None
    return ":".join(str(field) for field in (hash_of(uri), row, candidate) if field is not None)


def find_shards(inputs: Iterable[str], each: bool = True) -> list[Shard]:
    """The shards that files, directories and globs name, sorted by URI. A file with several names is one shard.

    Raises ConfigError if an input matches no shard (without `each`: if no input does) or names a file of another kind.
    """
    listings = {uri: _list(uri) for uri in inputs}
    chosen: dict[str, tuple[File, str]] = {}  # by URI without links: the file, and the URI of its best name
    for fs, listing in listings.values():
        for file in listing.files:
            real = uri_of(fs, file.real)
            if real not in chosen or file.rank < chosen[real][0].rank:
                chosen[real] = file, uri_of(fs, file.path)
    names = {file.path for file, _ in chosen.values()}
    for uri, (_, listing) in listings.items():
        listing.passed_over[READ] += sum(file.path not in names for file in listing.files)
        _log_skipped(uri, listing)
    empty = [uri for uri, (_, listing) in listings.items() if not listing.files]
    if empty and (each or not chosen):
        skipped = listings[empty[0]][1].skipped()
        others = f"; skipped: {skipped}" if skipped else ""
        raise ConfigError(f"input {empty[0]}: no {ENDINGS} file there{others}")
    for uri in empty:
        logger.warning("input %s: no shard there", uri)
    return sorted((_shard(uri, file.info) for file, uri in chosen.values()), key=lambda shard: shard.uri)


def _list(uri: str) -> tuple[Any, Listing]:
    check_input(uri)
    fs, path = open_filesystem(uri)
    try:
        listing = patiently(f"listing {uri}", lambda: list_files(fs, path, lambda name: is_read(name, uri)))
    except OSError as error:
        raise ConfigError(f"input {uri}: cannot be listed: {describe_error(error)}") from error
    if listing.is_file and not listing.files:
        conversion = f": {text}" if (text := advice(uri)) else ""
        raise ConfigError(f"input {uri}: expected a file that ends in {ENDINGS}{conversion}")
    return fs, listing


def _log_skipped(uri: str, listing: Listing) -> None:
    """Log one line about the names of an input that are not read, if there are any."""
    if skipped := listing.skipped():
        level = logging.WARNING if listing.passed_over[BROKEN] else logging.INFO
        count = len(listing.files) - listing.passed_over[READ]
        logger.log(level, "input %s: %d shard%s; skipped: %s", uri, count, "s" * (count != 1), skipped)


def _shard(uri: str, info: Mapping[str, Any]) -> Shard:
    version = version_of(info)
    folders = [folder.split("=", 1) for folder in uri.split("/")[:-1] if "=" in folder]
    partitions = tuple((unquote(name), unquote(value)) for name, value in folders)
    return Shard(uri, int(info["size"]), f"{info['size']}-{version}", partitions)


def version_of(info: Mapping[str, Any]) -> str:
    """The ETag, modification time or other value in a listing that changes whenever the file does."""
    version = next((info[key] for key in _VERSION_KEYS if info.get(key)), None)
    if version is None:
        raise ConfigError(
            f"{info['name']}: its storage reports neither an ETag nor a modification time, so a change could "
            f"not be detected"
        )
    return str(version).replace('"', "")


def stat_shard(uri: str) -> Shard | None:
    """The shard with exactly this URI, or None if there is no such file."""
    fs, path = open_filesystem(uri)
    try:
        info = patiently(f"looking up {uri}", lambda: fs.info(path))
    except FileNotFoundError:
        return None
    return _shard(uri, info)


def open_shard(shard: Shard) -> Source:
    """Open a shard. Raises OSError if the file has changed since the shard was listed."""
    fs, path = open_filesystem(shard.uri)
    ahead = _PARQUET_AHEAD_BYTES if shard.is_parquet else _AHEAD_BYTES

    def attempt() -> tuple[Any, Any]:
        stream = fs.open(path, "rb", block_size=ahead)
        return stream, getattr(stream, "details", None) or fs.info(path)

    stream, info = patiently(f"opening {shard.uri}", attempt)
    try:
        _check(shard, info)
    except OSError:
        stream.close()
        raise
    return Source(stream, shard.uri, shard.size)


def check_unchanged(shard: Shard) -> None:
    """Raises OSError if the file has changed since the shard was listed, or was deleted."""
    fs, path = open_filesystem(shard.uri)
    try:
        info = patiently(f"looking up {shard.uri}", lambda: fs.info(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{shard.uri} was deleted while it was being read. {_RUN_AGAIN}") from None
    _check(shard, info)


def check_read(shard: Shard) -> None:
    """Raises OSError if bytes read since the shard was opened may come from another version of the file.

    S3 needs no check: each range is requested with the ETag that the shard was opened with.
    """
    if not speaks(open_filesystem(shard.uri)[0], S3):
        check_unchanged(shard)


def _check(shard: Shard, info: Mapping[str, Any]) -> None:
    now, before = _shard(shard.uri, info).identity, shard.stamp or shard.identity
    if now != before:
        raise OSError(
            f"{shard.uri} changed while it was being read: from {before} to {now} (bytes-version). {_RUN_AGAIN}"
        )
