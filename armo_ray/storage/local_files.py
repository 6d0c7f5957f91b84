"""Files in any storage, for a reader that opens paths itself, such as DuckDB."""

import re
from typing import Any

from fsspec.spec import AbstractFileSystem

from armo_ray.storage.filesystem import Source, open_filesystem
from armo_ray.storage.retries import patiently

PROTOCOL = "armo"
_AHEAD_BYTES = 1 << 20


def readable(uri: str) -> str:
    """The path by which a reader with `Opened` registered opens a file; a plain local path is returned as it is."""
    plain = "://" not in uri and not re.search(r"[*?\[\]]", uri)
    return uri if plain else f"{PROTOCOL}://{uri}"


class Opened(AbstractFileSystem):  # type: ignore[misc]
    """Opens `armo://URI` with the filesystem of the URI; a range that fails is requested again."""

    protocol = PROTOCOL
    cachable = False

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Source:
        fs, inner = open_filesystem(self._strip_protocol(path))
        size = int(patiently(f"looking up {inner}", lambda: fs.info(inner))["size"])
        stream = patiently(f"opening {inner}", lambda: fs.open(inner, mode, block_size=_AHEAD_BYTES))
        return Source(stream, inner, size)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        fs, inner = open_filesystem(self._strip_protocol(path))
        entry: dict[str, Any] = patiently(f"looking up {inner}", lambda: fs.info(inner))
        return entry

    def glob(self, path: str, **_: Any) -> list[str]:
        return [path]  # paths come from the manifest and are never patterns, whatever characters they hold

    def modified(self, path: str) -> Any:
        fs, inner = open_filesystem(self._strip_protocol(path))
        return patiently(f"looking up {inner}", lambda: fs.modified(inner))
