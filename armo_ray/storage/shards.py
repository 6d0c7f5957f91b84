"""Finding the shards of an input: files that are read, never written."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from armo_ray.errors import ConfigError
from armo_ray.storage.filesystem import STORAGE_ERRORS, Source, open_filesystem, uri_of

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
_VERSION_KEYS = ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified")
_BLOCK_BYTES = 4 << 20  # read ahead; s3fs would take 50 MiB at every place that Parquet turns to
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
        return hashlib.blake2b(self.uri.encode(), digest_size=8).hexdigest()

    @property
    def is_parquet(self) -> bool:
        return self.uri.endswith(".parquet")


def find_shards(inputs: Iterable[str]) -> list[Shard]:
    """The shards under files, directories and globs, each once, sorted by URI.

    Raises ConfigError where an input matches nothing or names a file of another kind.
    """
    found: dict[str, Shard] = {}
    for uri in inputs:
        shards = _find(uri)
        if not shards:
            raise ConfigError(f"input {uri}: no {', '.join(SUFFIXES)} file there")
        found |= {shard.uri: shard for shard in shards}
    return [found[uri] for uri in sorted(found)]


def _find(uri: str) -> list[Shard]:
    fs, path = open_filesystem(uri)
    try:
        if any(c in path for c in "*?[") and not fs.exists(path):
            entries = fs.glob(path, detail=True)
        elif fs.isfile(path):
            if not path.endswith(SUFFIXES):
                raise ConfigError(f"input {uri}: expected a file that ends in {', '.join(SUFFIXES)}")
            entries = {path: fs.info(path)}
        else:
            entries = fs.find(path, detail=True)
    except STORAGE_ERRORS as error:
        raise ConfigError(f"input {uri}: cannot be listed: {error}") from error
    base = re.split(r"[*?[]", path)[0].removesuffix("/")
    shards = []
    for name, listed in entries.items():
        if not name.endswith(SUFFIXES) or _hidden(name[len(base) :]):
            continue
        info = fs.info(name) if listed.get("islink") else listed  # a link is listed as itself
        if info["type"] == "file":
            shards.append(_shard(uri_of(fs, name), info))
    return shards


def _hidden(below: str) -> bool:
    """Whether a name that follows what the input spells out begins with _ or a dot."""
    return any(part.startswith(("_", ".")) for part in below.split("/")[1:])


def _shard(uri: str, info: Mapping[str, Any]) -> Shard:
    version = next((info[key] for key in _VERSION_KEYS if info.get(key)), None)
    if version is None:
        raise ConfigError(
            f"{uri}: its storage tells neither ETag nor modification time, by which a change is seen"
        )
    folders = [folder.split("=", 1) for folder in uri.split("/")[:-1] if "=" in folder]
    partitions = tuple((unquote(name), unquote(value)) for name, value in folders)
    return Shard(uri, int(info["size"]), f"{info['size']}-{version}".replace('"', ""), partitions)


def open_shard(shard: Shard) -> Source:
    """The bytes of a shard. Raises OSError where it is no longer the file that was planned."""
    fs, path = open_filesystem(shard.uri)
    found = _shard(shard.uri, fs.info(path))
    if found.identity != shard.identity:
        raise OSError(f"{shard.uri} changed while it was read: {found.identity}, planned as {shard.identity}")
    return Source(fs.open(path, "rb", block_size=_BLOCK_BYTES))
