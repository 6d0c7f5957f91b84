"""The local or remote filesystem (fsspec) of a URI, and files read from it in ranges."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from fsspec import filesystem, get_filesystem_class
from fsspec.implementations.local import LocalFileOpener, LocalFileSystem
from fsspec.spec import AbstractFileSystem

from armo_ray.errors import ConfigError
from armo_ray.storage.retries import describe_error, patiently
from armo_ray.storage.uris import check_uri

THREADS = 16
_AT_ONCE = 4_096  # calls queued for a thread; each takes a kilobyte or more
S3, GS, AZ = {"s3", "s3a"}, {"gs", "gcs"}, {"az", "abfs", "abfss"}
_EXTRAS = dict.fromkeys(GS, "gs") | dict.fromkeys(AZ, "az")
_INPUTS = {"file", "hf"} | S3 | GS | AZ


def is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


def check_input(uri: str) -> None:
    """Raises ConfigError if input cannot be read from this kind of URI. Sends no request."""
    check_uri(uri)
    protocol, separator, _ = uri.partition("://")
    if separator and protocol not in _INPUTS:
        raise ConfigError(f"input {uri}: input comes from a local path, s3://, gs://, az:// or hf://")


def open_filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a URI and the path in it. Raises ConfigError if the protocol is unknown or not installed.

    Listings are never cached, because other processes write at the same time. fsspec's chained URIs (`a::b`) are not
    supported, because a file name in a listing may look like one.
    """
    check_uri(uri)
    protocol, separator, _ = uri.partition("://")
    if not separator:
        protocol = "file"
    try:
        kind = get_filesystem_class(protocol)
        fs = filesystem(protocol, use_listings_cache=False, **kind._get_kwargs_from_urls(uri))
    except (ImportError, ValueError) as error:
        extra = _EXTRAS.get(protocol)
        advice = f"install its package: pip install 'armo-ray[{extra}]'" if extra else describe_error(error)
        raise ConfigError(f"{uri}: {advice}") from error
    if speaks(fs, S3):
        # s3fs would repeat the attempts of botocore: 25 per request, each up to 15 s
        fs.retries = 1
    path = str(fs._strip_protocol(uri))
    # an absolute path, so that a file has one URI however it was named
    return fs, os.path.abspath(path) if isinstance(fs, LocalFileSystem) else path


def speaks(fs: AbstractFileSystem, *protocols: set[str]) -> bool:
    own = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    return not own.isdisjoint(set().union(*protocols))


def uri_of(fs: AbstractFileSystem, path: str) -> str:
    """A path as records hold it: with its protocol, except for local paths."""
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def read_text(uri: str) -> str:
    """The text of a small file, without a byte order mark. Raises ConfigError if it cannot be read or is not UTF-8."""
    try:
        fs, path = open_filesystem(uri)
        content: bytes = patiently(f"reading {uri}", lambda: fs.cat_file(path))
        return content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{uri}: cannot be read: {describe_error(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{uri}: not UTF-8 text: {error}") from error


class Source:
    """An open file of known size, read in ranges. A range that fails is requested again.

    `failure` remembers the error if the storage failed for good: then the file is not damaged, only unreachable.
    """

    def __init__(self, stream: Any, uri: str, size: int) -> None:
        self.stream = stream
        self.uri = uri
        self.size = size
        self.failure: Exception | None = None

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def read(self, size: int = -1) -> bytes:
        at = self.stream.tell()
        left = max(self.size - at, 0)
        wanted = left if size is None or size < 0 else min(size, left)

        def attempt() -> bytes:
            self.stream.seek(at)
            content: bytes = self.stream.read(wanted)
            if len(content) != wanted and isinstance(self.stream, LocalFileOpener):
                raise OSError(
                    f"{self.uri} changed while it was being read: it is shorter than its {self.size} bytes. "
                    f"Once it is complete, run the same command again"
                )
            if len(content) != wanted:
                raise ConnectionError(f"received {len(content)} of {wanted} bytes from offset {at}")
            return content

        try:
            return patiently(f"reading {self.uri}", attempt)
        except Exception as error:
            self.failure = error
            raise

    def raise_failure(self) -> None:
        """Raise the error of the storage, if there was one; if not, the content is at fault."""
        if self.failure is not None:
            raise self.failure


def in_parallel(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Apply a function to every item on a few threads, for calls that wait for storage. Results keep the order."""
    rest = iter(items)
    results: list[Any] = []
    with ThreadPoolExecutor(THREADS) as pool:
        while batch := list(islice(rest, _AT_ONCE)):
            results += pool.map(function, batch)
    return results
