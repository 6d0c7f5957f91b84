"""One directory or prefix of files that appear whole or not at all."""

import contextlib
import json
import math
import os
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.implementations.local import LocalFileSystem

from armo_ray.errors import ConfigError
from armo_ray.storage.filesystem import AZ, GS, S3, open_filesystem, speaks, uri_of
from armo_ray.storage.retries import answer_of, patiently

PART_BYTES = 16 << 20  # of an upload in parts, which a file of twice as much is
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}")
_OLD_S = 600.0  # a temporary file that nobody wrote to for so long is nobody's
_ATTEMPTS = 5


class Store:
    """An output: local, s3://, gs:// or az://."""

    def __init__(self, uri: str) -> None:
        self.fs, path = open_filesystem(uri)
        self.root = path.rstrip("/")
        self.local = isinstance(self.fs, LocalFileSystem)
        self.uri = uri_of(self.fs, self.root)
        if not self.local and not speaks(self.fs, S3, GS, AZ):
            raise ConfigError(f"output {self.uri}: outputs go to a local path, s3://, gs:// or az://")

    def path(self, name: str) -> str:
        """Where a file of this name is. Raises ConfigError where that would not be below the root."""
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise ConfigError(f"{self.uri}: {name!r} is not the name of a file in it")
        return f"{self.root}/{name}"

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file at once: by rename on a disk, by one upload in an object store."""
        if not self.local:
            self._put(name, content)
            return
        with self._temporary(name, content) as temporary:
            os.replace(temporary, self.path(name))

    def create(self, name: str, content: bytes) -> bool:
        """Create a file unless it exists; False where it does. Of two writers with contents of their own one wins."""
        if not self.local:
            return self._create_remote(name, content)
        with self._temporary(name, content) as temporary:
            try:
                os.link(temporary, self.path(name))
            except FileExistsError:
                return False
        return True

    @contextlib.contextmanager
    def _temporary(self, name: str, content: bytes) -> Iterator[str]:
        """A file beside a name, on the disk for sure, that is gone at the end."""
        directory, base = os.path.split(self.path(name))
        temporary = f"{directory}/.{base}.{uuid.uuid4().hex}"
        try:
            with _opened(temporary) as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            yield temporary
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def sweep(self, folders: Sequence[str]) -> None:
        """Delete the temporary files that killed writers left on a disk.

        Those in `folders`, where nobody else may be writing now; directly in the root, where anybody may write a
        report, those that are older than ten minutes.
        """
        if not self.local:
            return
        for folder in folders:
            for directory, _, names in os.walk(self.path(folder)):
                _delete_temporaries(directory, names, math.inf)
        with contextlib.suppress(FileNotFoundError):
            _delete_temporaries(self.root, os.listdir(self.root), time.time() - _OLD_S)

    def _put(self, name: str, content: bytes) -> None:
        sizes = {} if speaks(self.fs, AZ) else {"chunksize": PART_BYTES}  # the Azure package has its own
        patiently(f"writing {self.uri}/{name}", lambda: self.fs.pipe_file(self.path(name), content, **sizes))

    def _create_remote(self, name: str, content: bytes) -> bool:
        """By the store's own condition: If-None-Match on S3 and Azure, a generation of 0 on Google's."""

        def attempt() -> bool:
            try:
                self.fs.pipe_file(self.path(name), content, mode="create")
                return True
            except Exception as error:
                # s3fs names a failed condition differently for different servers; the HTTP status is the same
                status = answer_of(error).status
                if status == 501:  # a store without conditional writes: nobody else is to write there
                    return self._create_unconditionally(name, content)
                if status != 412 and not isinstance(error, FileExistsError):
                    raise
            # an attempt whose answer got lost may have written it: aiohttp repeats a PUT, and tells nobody
            found = self._content(name)
            return attempt() if found is None else found == content  # None: deleted since

        return patiently(f"creating {self.uri}/{name}", attempt)

    def _create_unconditionally(self, name: str, content: bytes) -> bool:
        if self.fs.exists(self.path(name)):
            return False
        self.fs.pipe_file(self.path(name), content)
        return True

    def read(self, name: str) -> bytes:
        whole = {"max_concurrency": 1} if speaks(self.fs, S3) else {}  # one request, not two to cut it
        return bytes(
            patiently(f"reading {self.uri}/{name}", lambda: self.fs.cat_file(self.path(name), **whole))
        )

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The content of a JSON file, None where there is no such file."""
        found = self._content(name)
        try:
            content: dict[str, Any] | None = None if found is None else json.loads(found)
        except ValueError as error:
            raise RuntimeError(f"{self.path(name)}: damaged: {error}") from error
        return content

    def _content(self, name: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return self.read(name)
        return None

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            patiently(f"deleting {self.uri}/{name}", lambda: self.fs.rm_file(self.path(name)))

    def list_names(self, folder: str) -> dict[str, int]:
        """Names and sizes of the files directly in a folder, none where the folder does not exist."""
        try:
            entries = patiently(
                f"listing {self.uri}/{folder}", lambda: self.fs.ls(self.path(folder), detail=True)
            )
        except FileNotFoundError:
            return {}
        names = {e["name"].rsplit("/", 1)[-1]: int(e["size"] or 0) for e in entries if e["type"] == "file"}
        return {name: size for name, size in names.items() if name and not name.startswith(".")}

    def find(self, folder: str) -> list[str]:
        """The paths of all files below a folder."""
        found: list[str] = patiently(f"listing {self.uri}/{folder}", lambda: self.fs.find(self.path(folder)))
        return found


def final_name(name: str) -> str:
    """The path of the file that a temporary one is to become; of another file its own."""
    folder, slash, base = name.rpartition("/")
    found = _TEMPORARY.fullmatch(base)
    return f"{folder}{slash}{found[1]}" if found else name


def missing_directories(store: Store) -> list[str]:
    """The directories, the deepest first, that the first file of an output on a disk will make."""
    root = Path(store.root)
    return [str(path) for path in (root, *root.parents) if not path.exists()] if store.local else []


def remove_empty(directories: Sequence[str]) -> None:
    """Remove those that hold nothing; given the deepest first, also those that hold nothing but these."""
    for directory in directories:
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def _opened(path: str) -> BinaryIO:
    """A new file, with its directories: of those another command may delete the empty ones meanwhile."""
    for _ in range(_ATTEMPTS):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return open(path, "wb")
    return open(path, "wb")


def _delete_temporaries(directory: str, names: Sequence[str], before: float) -> None:
    """Those last written to before a time."""
    for name in filter(_TEMPORARY.fullmatch, names):
        with contextlib.suppress(FileNotFoundError):
            if os.stat(f"{directory}/{name}").st_mtime < before:
                os.unlink(f"{directory}/{name}")
