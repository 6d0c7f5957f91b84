"""The filesystem of a URI, local or remote (fsspec), and files read from it by ranges."""

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
_AT_ONCE = 4_096  # calls that wait for a thread; each costs a kilobyte or more
S3, GS, AZ = {"s3", "s3a"}, {"gs", "gcs"}, {"az", "abfs", "abfss"}
_EXTRAS = dict.fromkeys(GS, "gs") | dict.fromkeys(AZ, "az")
_INPUTS = {"file", "hf"} | S3 | GS | AZ


def is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


def check_input(uri: str) -> None:
    """Raises ConfigError where input cannot come from such a place: nothing is asked for there."""
    check_uri(uri)
    protocol, separator, _ = uri.partition("://")
    if separator and protocol not in _INPUTS:
        raise ConfigError(f"input {uri}: input comes from a local path, s3://, gs://, az:// or hf://")


def open_filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a URI and the path in it.

    A listing is never cached: others write meanwhile. A URI is one place: fsspec's chains of them (`a::b`) are
    not followed, for a name in a listing may look like one.
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
        # s3fs repeats what botocore has repeated: 25 attempts, of up to 15 s, at every request
        fs.retries = 1
    path = str(fs._strip_protocol(uri))
    # one file has one URI, however it was named
    return fs, os.path.abspath(path) if isinstance(fs, LocalFileSystem) else path


def speaks(fs: AbstractFileSystem, *protocols: set[str]) -> bool:
    own = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    return not own.isdisjoint(set().union(*protocols))


def uri_of(fs: AbstractFileSystem, path: str) -> str:
    """How a path is written in records: with its protocol, but a local path as it is."""
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def read_text(uri: str) -> str:
    """The text of a small file, without a byte order mark. Raises ConfigError where it cannot be had."""
    try:
        fs, path = open_filesystem(uri)
        content: bytes = patiently(f"reading {uri}", lambda: fs.cat_file(path))
        return content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{uri}: cannot be read: {describe_error(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{uri}: not UTF-8 text: {error}") from error


class Source:
    """An open file of a known size, read by ranges. A range that fails is asked for again.

    It remembers whether the storage failed for good: such a file is not damaged, and is read another time.
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
                    f"{self.uri} changed while it was read: it is shorter than its {self.size} bytes. When it is "
                    f"whole, run the same command again"
                )
            if len(content) != wanted:
                raise ConnectionError(f"{len(content)} bytes came of {wanted} from {at} on")
            return content

        try:
            return patiently(f"reading {self.uri}", attempt)
        except Exception as error:
            self.failure = error
            raise

    def raise_failure(self) -> None:
        """Raise what the storage raised, if it did; what else went wrong is the content's fault."""
        if self.failure is not None:
            raise self.failure


def in_parallel(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """`function` of every item, in order, on a few threads: for calls that wait for storage."""
    rest = iter(items)
    found: list[Any] = []
    with ThreadPoolExecutor(THREADS) as pool:
        while some := list(islice(rest, _AT_ONCE)):
            found += pool.map(function, some)
    return found
