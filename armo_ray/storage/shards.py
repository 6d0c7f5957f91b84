"""Finding the shards of an input: files that are read, never written."""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from armo_ray.errors import ConfigError
from armo_ray.storage.filesystem import S3, Source, check_input, is_remote, open_filesystem, speaks, uri_of
from armo_ray.storage.formats import KINDS, LINES, PARQUET, advice, is_read, kind_of
from armo_ray.storage.listing import BROKEN, READ, File, Listing, list_files
from armo_ray.storage.retries import describe_error, patiently

logger = logging.getLogger(__name__)

_VERSION_KEYS = ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified")
# read ahead: lines come one after the other, but what lies behind a column of a Parquet file is seldom wanted
_AHEAD_BYTES, _PARQUET_AHEAD_BYTES = 4 << 20, 64 << 10
_RUN_AGAIN = "What was read of it is not committed. When it is whole, run the same command again"
DAMAGE = (OSError, pa.ArrowException, UnicodeDecodeError)  # what a file that is not whole raises


@dataclass(frozen=True)
class Shard:
    """One input file. `identity` names its units, and changes whenever its content does."""

    uri: str
    size: int  # bytes
    identity: str
    partitions: tuple[tuple[str, str], ...]  # hive directories on the way to it
    stamp: str | None = None  # what its identity would be now, where only its modification time has changed

    @property
    def hash(self) -> str:
        """16 hex digits of the URI, which every unit id of the shard begins with."""
        return hash_of(self.uri)

    @property
    def is_timed(self) -> bool:
        """Whether its identity holds a modification time, which may change when its content does not."""
        return not is_remote(self.uri)

    @property
    def is_parquet(self) -> bool:
        return self.kind == PARQUET

    @property
    def kind(self) -> str:
        """One of `formats.KINDS`."""
        return kind_of(self.uri) or LINES


def hash_of(uri: str) -> str:
    """16 hex digits of a shard's URI."""
    return hashlib.blake2b(uri.encode(), digest_size=8).hexdigest()


def row_id(uri: str, row: int | None, candidate: int | None) -> str | None:
    """What `armo-ray explain` finds a candidate, or a whole row, by; None of a whole shard."""
    if row is None:
        return None
    return ":".join(str(part) for part in (hash_of(uri), row, candidate) if part is not None)


def find_shards(inputs: Iterable[str], each: bool = True) -> list[Shard]:
    """The shards under files, directories and globs, sorted by URI. A file under several names is one shard.

    Raises ConfigError where an input, or without `each` all of them, matches nothing, or names a file of another
    kind.
    """
    listings = {uri: _list(uri) for uri in inputs}
    kept: dict[str, tuple[File, str]] = {}
    for fs, listing in listings.values():
        for file in listing.files:
            real = uri_of(fs, file.real)
            if real not in kept or file.rank < kept[real][0].rank:
                kept[real] = file, uri_of(fs, file.path)
    names = {file.path for file, _ in kept.values()}
    for uri, (_, listing) in listings.items():
        listing.passed_over[READ] += sum(file.path not in names for file in listing.files)
        _tell(uri, listing)
    empty = [uri for uri, (_, listing) in listings.items() if not listing.files]
    if empty and (each or not kept):
        told = listings[empty[0]][1].told()
        found = f"; passed over: {told}" if told else ""
        raise ConfigError(f"input {empty[0]}: no {', '.join(KINDS)} file there{found}")
    for uri in empty:
        logger.warning("input %s: no shard there", uri)
    return sorted((_shard(uri, file.info) for file, uri in kept.values()), key=lambda shard: shard.uri)


def _list(uri: str) -> tuple[Any, Listing]:
    check_input(uri)
    fs, path = open_filesystem(uri)
    try:
        listing = patiently(f"listing {uri}", lambda: list_files(fs, path, lambda name: is_read(name, uri)))
    except OSError as error:
        raise ConfigError(f"input {uri}: cannot be listed: {describe_error(error)}") from error
    if listing.is_file and not listing.files:
        told = f": {found}" if (found := advice(uri)) else ""
        raise ConfigError(f"input {uri}: expected a file that ends in {', '.join(KINDS)}{told}")
    return fs, listing


def _tell(uri: str, listing: Listing) -> None:
    """One line on what of an input is passed over, if anything is."""
    if told := listing.told():
        level = logging.WARNING if listing.passed_over[BROKEN] else logging.INFO
        count = len(listing.files) - listing.passed_over[READ]
        logger.log(level, "input %s: %d shard%s; passed over: %s", uri, count, "s" * (count != 1), told)


def _shard(uri: str, info: Mapping[str, Any]) -> Shard:
    version = version_of(info)
    folders = [folder.split("=", 1) for folder in uri.split("/")[:-1] if "=" in folder]
    partitions = tuple((unquote(name), unquote(value)) for name, value in folders)
    return Shard(uri, int(info["size"]), f"{info['size']}-{version}", partitions)


def version_of(info: Mapping[str, Any]) -> str:
    """What changes when a file does, as a listing tells it."""
    version = next((info[key] for key in _VERSION_KEYS if info.get(key)), None)
    if version is None:
        raise ConfigError(
            f"{info['name']}: its storage tells neither ETag nor modification time, by which a change is seen"
        )
    return str(version).replace('"', "")


def stat_shard(uri: str) -> Shard | None:
    """The one shard of this very name, None where there is none."""
    fs, path = open_filesystem(uri)
    try:
        info = patiently(f"looking up {uri}", lambda: fs.info(path))
    except FileNotFoundError:
        return None
    return _shard(uri, info)


def open_shard(shard: Shard) -> Source:
    """The bytes of a shard. Raises OSError where it is no longer the file that was planned."""
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
    """Raise OSError where a shard is no longer the file that was planned."""
    fs, path = open_filesystem(shard.uri)
    try:
        info = patiently(f"looking up {shard.uri}", lambda: fs.info(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{shard.uri} was deleted while it was read. {_RUN_AGAIN}") from None
    _check(shard, info)


def check_read(shard: Shard) -> None:
    """Raise OSError where what was read of a shard since it was opened may be of another file.

    S3 needs no second look: each of its ranges is asked for by the ETag that the shard was opened with.
    """
    if not speaks(open_filesystem(shard.uri)[0], S3):
        check_unchanged(shard)


def _check(shard: Shard, info: Mapping[str, Any]) -> None:
    now, before = _shard(shard.uri, info).identity, shard.stamp or shard.identity
    if now != before:
        raise OSError(
            f"{shard.uri} changed while it was read: it was {before}, and is {now} (bytes-version). {_RUN_AGAIN}"
        )
