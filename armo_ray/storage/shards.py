"""Finding the shards of an input: files that are read, never written."""

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from armo_ray.errors import ConfigError
from armo_ray.storage.filesystem import S3, Source, check_input, open_filesystem, speaks, uri_of
from armo_ray.storage.retries import explain, patiently

logger = logging.getLogger(__name__)

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
_VERSION_KEYS = ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified")
# read ahead: lines come one after the other, but what lies behind a column of a Parquet file is seldom wanted
_AHEAD_BYTES, _PARQUET_AHEAD_BYTES = 4 << 20, 64 << 10
DAMAGE = (OSError, pa.ArrowException, UnicodeDecodeError)  # what a file that is not whole raises


@dataclass(frozen=True)
class Shard:
    """One input file. `identity` changes whenever its content does."""

    uri: str
    size: int  # bytes
    identity: str
    partitions: tuple[tuple[str, str], ...]  # hive directories on the way to it

    @property
    def hash(self) -> str:
        """16 hex digits of the URI, which every unit id of the shard begins with."""
        return hash_of(self.uri)

    @property
    def is_parquet(self) -> bool:
        return self.uri.endswith(".parquet")


def hash_of(uri: str) -> str:
    """16 hex digits of a shard's URI."""
    return hashlib.blake2b(uri.encode(), digest_size=8).hexdigest()


def row_id(uri: str, row: int | None, candidate: int | None) -> str | None:
    """What `armo-ray explain` finds a candidate, or a whole row, by; None of a whole shard."""
    if row is None:
        return None
    return ":".join(str(part) for part in (hash_of(uri), row, candidate) if part is not None)


def find_shards(inputs: Iterable[str], each: bool = True) -> list[Shard]:
    """The shards under files, directories and globs, one for a URI, sorted by it.

    Raises ConfigError where an input, or without `each` all of them, matches nothing, or names a file of another
    kind.
    """
    found: dict[str, Shard] = {}
    empty = []
    for uri in inputs:
        shards = _find(uri)
        empty += [] if shards else [uri]
        found |= {shard.uri: shard for shard in shards}
    if empty and (each or not found):
        raise ConfigError(f"input {empty[0]}: no {', '.join(SUFFIXES)} file there")
    for uri in empty:
        logger.warning("input %s: no shard there", uri)
    return [found[uri] for uri in sorted(found)]


def _find(uri: str) -> list[Shard]:
    check_input(uri)
    fs, path = open_filesystem(uri)
    try:
        entries = patiently(f"listing {uri}", lambda: _entries(fs, path))
    except OSError as error:
        raise ConfigError(f"input {uri}: cannot be listed: {explain(error)}") from error
    if path in entries and not path.endswith(SUFFIXES):
        raise ConfigError(f"input {uri}: expected a file that ends in {', '.join(SUFFIXES)}")
    base = re.split(r"[*?[]", path)[0].removesuffix("/")
    shards = []
    for name, listed in entries.items():
        if not name.endswith(SUFFIXES) or _hidden(name[len(base) :]):
            continue
        info = fs.info(name) if listed.get("islink") else listed  # a link is listed as itself
        if info["type"] == "file":
            shards.append(_shard(uri_of(fs, name), info))
    return shards


def _entries(fs: Any, path: str) -> dict[str, Any]:
    """What a listing says of the files that a path, directory or glob names.

    A glob is matched here, against one listing of all that begins like it: fsspec's own asks for one directory
    after the other, and takes one that cannot be listed for empty.
    """
    try:
        info = fs.info(path)
    except FileNotFoundError:
        info = {"type": None}
    if info["type"] == "file":
        return {path: info}
    if info["type"] is not None or not any(c in path for c in "*?["):
        return _below(fs, path)
    folder, _, begin = re.split(r"[*?[]", path)[0].rpartition("/")
    matches = re.compile(glob_translate(path)).match
    listed = _below(fs, folder, **({"prefix": begin} if begin and speaks(fs, S3) else {}))
    return {name: entry for name, entry in listed.items() if matches(name)}


def _below(fs: Any, path: str, **options: str) -> dict[str, Any]:
    """All files below a directory, none where there is no such directory."""
    if isinstance(fs, LocalFileSystem):
        options["on_error"] = "raise"
    try:
        found: dict[str, Any] = fs.find(path, detail=True, **options)
    except FileNotFoundError:
        return {}
    return found


def _hidden(below: str) -> bool:
    """Whether a name that follows what the input spells out begins with _ or a dot."""
    return any(part.startswith(("_", ".")) for part in below.split("/")[1:])


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
    found = _shard(shard.uri, info)
    if found.identity != shard.identity:
        stream.close()
        raise OSError(f"{shard.uri} changed while it was read: {found.identity}, planned as {shard.identity}")
    return Source(stream, shard.uri, shard.size)
