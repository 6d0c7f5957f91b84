"""Files and objects by URI, local and remote through one path (fsspec)."""

import json
import os
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from botocore.exceptions import BotoCoreError
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from armo_ray.errors import ConfigError

THREADS = 16
_CONFLICTS = 5  # attempts at a create that S3 answers with 409: another is under way, try again
STORAGE_ERRORS = (OSError, BotoCoreError)  # of S3 without credentials or without a connection


def open_filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a URI and the path in it. A listing is never cached: others write meanwhile."""
    try:
        fs, path = url_to_fs(uri, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{uri}: {error}") from error
    # one file has one URI, however it was named
    return fs, os.path.abspath(path) if isinstance(fs, LocalFileSystem) else path


def uri_of(fs: AbstractFileSystem, path: str) -> str:
    """How a path is written in records: with its protocol, but a local path as it is."""
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


class Store:
    """One directory (or prefix) of files that appear whole or not at all."""

    def __init__(self, uri: str) -> None:
        self.fs, path = open_filesystem(uri)
        self.root = path.rstrip("/")
        self.local = isinstance(self.fs, LocalFileSystem)
        self.uri = uri_of(self.fs, self.root)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file at once: by rename on a disk, by one upload in an object store."""
        if not self.local:
            self.fs.pipe_file(self.path(name), content)
            return
        temporary = self._temporary(name, content)
        os.replace(temporary, self.path(name))

    def create(self, name: str, content: bytes) -> bool:
        """Create a file unless it exists; False where it does. Of two writers one wins."""
        if not self.local:
            return self._create_remote(name, content)
        temporary = self._temporary(name, content)
        try:
            os.link(temporary, self.path(name))
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        return True

    def _temporary(self, name: str, content: bytes) -> str:
        path = self.path(name)
        directory, base = os.path.split(path)
        os.makedirs(directory, exist_ok=True)
        temporary = f"{directory}/.{base}.{uuid.uuid4().hex}"
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        return temporary

    def _create_remote(self, name: str, content: bytes) -> bool:
        if "s3" not in self.fs.protocol:
            raise ConfigError(f"output {self.uri}: outputs go to a local path or to s3://")
        bucket, key, _ = self.fs.split_path(self.path(name))
        for attempt in range(_CONFLICTS):
            try:
                self.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
                return True
            except OSError as error:
                # s3fs names a failed condition differently for different servers; the HTTP status is the same
                answer = getattr(error.__cause__, "response", {}).get("ResponseMetadata", {})
                if answer.get("HTTPStatusCode") == 412:
                    return False
                if answer.get("HTTPStatusCode") != 409 or attempt + 1 == _CONFLICTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def read(self, name: str) -> bytes:
        content: bytes = self.fs.cat_file(self.path(name))
        return content

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The content of a JSON file, None where there is no such file."""
        try:
            content: dict[str, Any] = json.loads(self.read(name))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RuntimeError(f"{self.path(name)}: damaged: {error}") from error
        return content

    def delete(self, name: str) -> None:
        if self.fs.exists(self.path(name)):
            self.fs.rm_file(self.path(name))

    def list_names(self, folder: str) -> dict[str, int]:
        """Names and sizes of the files directly in a folder, none where the folder does not exist."""
        try:
            entries = self.fs.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return {}
        names = {e["name"].rsplit("/", 1)[-1]: int(e["size"] or 0) for e in entries if e["type"] == "file"}
        return {name: size for name, size in names.items() if name and not name.startswith(".")}


class Source:
    """An open file that remembers whether the storage failed: such a file is not damaged, and is read again."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.failure: Exception | None = None

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def read(self, size: int = -1) -> bytes:
        try:
            content: bytes = self.stream.read(size)
        except Exception as error:
            self.failure = error
            raise
        return content

    def raise_failure(self) -> None:
        """Raise what the storage raised, if it did; what else went wrong is the content's fault."""
        if self.failure is not None:
            raise self.failure


def in_parallel(function: Any, items: Iterable[Any]) -> list[Any]:
    """`function` of every item, in order, on a few threads: for calls that wait for storage."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, items))
