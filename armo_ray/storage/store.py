"""A directory or prefix whose files are written atomically: they appear complete or not at all."""

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

PART_BYTES = 16 << 20  # of each piece of a multipart upload, which is used from twice this size on
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}")
_OLD_S = 600.0  # a temporary file that was not written to for so long is abandoned
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
        """The path of a file of this name. Raises ConfigError if it would not be below the root."""
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise ConfigError(f"{self.uri}: {name!r} is not the name of a file in it")
        return f"{self.root}/{name}"

    def write(self, name: str, content: bytes | memoryview, lasting: bool = True) -> None:
        """Create or replace a file atomically: by rename on a disk, by one upload in an object store.

        A file that is not `lasting` may be lost if the machine stops.
        """
        if not self.local:
            self._put(name, bytes(content))
            return
        with self._temporary(name, content, lasting) as temporary:
            os.replace(temporary, self.path(name))

    def create(self, name: str, content: bytes) -> bool:
        """Create a file and return True, or return False if it exists. Of two concurrent writers, one succeeds."""
        if not self.local:
            return self._create_remote(name, content)
        with self._temporary(name, content) as temporary:
            try:
                os.link(temporary, self.path(name))
            except FileExistsError:
                return False
        return True

    @contextlib.contextmanager
    def _temporary(self, name: str, content: bytes | memoryview, lasting: bool = True) -> Iterator[str]:
        """A temporary file with this content beside a name, on disk already if it is to last, deleted at the end."""
        directory, base = os.path.split(self.path(name))
        temporary = f"{directory}/.{base}.{uuid.uuid4().hex}"
        try:
            with _opened(temporary) as stream:
                stream.write(content)
                if lasting:
                    stream.flush()
                    os.fsync(stream.fileno())
            yield temporary
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def sweep(self, folders: Sequence[str]) -> None:
        """Delete the temporary files that killed writers left on a disk.

        In `folders`, all of them: no other process may be writing there now. Directly in the root, where any process
        may be writing a report, only those older than ten minutes. It lists every file of the folders.
        """
        if not self.local:
            return
        for folder in folders:
            for directory, _, names in os.walk(self.path(folder)):
                _delete_temporaries(directory, names, math.inf)
        with contextlib.suppress(FileNotFoundError):
            _delete_temporaries(self.root, os.listdir(self.root), time.time() - _OLD_S)

    def _put(self, name: str, content: bytes) -> None:
        sizes = {} if speaks(self.fs, AZ) else {"chunksize": PART_BYTES}  # the Azure package chooses its own
        patiently(f"writing {self.uri}/{name}", lambda: self.fs.pipe_file(self.path(name), content, **sizes))

    def _create_remote(self, name: str, content: bytes) -> bool:
        """By a conditional write: If-None-Match on S3 and Azure, generation 0 on Google Cloud Storage."""

        def attempt() -> bool:
            try:
                self.fs.pipe_file(self.path(name), content, mode="create")
                return True
            except Exception as error:
                # s3fs reports a failed condition differently for each server, but with the same HTTP status
                status = answer_of(error).status
                if status == 501:  # a store without conditional writes: there must be no other writer
                    return self._create_unconditionally(name, content)
                if status != 412 and not isinstance(error, FileExistsError):
                    raise
            # an attempt whose response was lost may have written the file: aiohttp repeats a PUT silently
            current = self._content(name)
            return attempt() if current is None else current == content  # None: deleted since

        return patiently(f"creating {self.uri}/{name}", attempt)

    def _create_unconditionally(self, name: str, content: bytes) -> bool:
        if self.fs.exists(self.path(name)):
            return False
        self.fs.pipe_file(self.path(name), content)
        return True

    def read(self, name: str) -> bytes:
        # on S3 one request: in parallel ranges it would take two
        whole = {"max_concurrency": 1} if speaks(self.fs, S3) else {}
        return bytes(
            patiently(f"reading {self.uri}/{name}", lambda: self.fs.cat_file(self.path(name), **whole))
        )

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The content of a JSON file, or None if there is no such file. Raises RuntimeError if it is not JSON."""
        raw = self._content(name)
        try:
            content: dict[str, Any] | None = None if raw is None else json.loads(raw)
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
        """Names and sizes in bytes of the files directly in a folder; empty if there is no such folder."""
        return {name: int(entry["size"] or 0) for name, entry in self.list_entries(folder).items()}

    def list_entries(self, folder: str) -> dict[str, dict[str, Any]]:
        """As `list_names`, with all that the storage tells of each file: its size, and ETag or modification time."""
        try:
            entries = patiently(
                f"listing {self.uri}/{folder}", lambda: self.fs.ls(self.path(folder), detail=True)
            )
        except FileNotFoundError:
            return {}
        files = {e["name"].rsplit("/", 1)[-1]: e for e in entries if e["type"] == "file"}
        return {name: entry for name, entry in files.items() if name and not name.startswith(".")}

    @contextlib.contextmanager
    def opened(self, folder: str) -> Iterator[tuple[int, list[str]]]:
        """A folder on a disk as a descriptor, and the names in it, often a great many: fsspec takes ten times as long.

        With the descriptor, looking up a file resolves one name, not the whole path. Raises FileNotFoundError.
        """
        descriptor = os.open(self.path(folder), os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield descriptor, os.listdir(descriptor)
        finally:
            os.close(descriptor)

    def find(self, folder: str) -> list[str]:
        """The paths of all files below a folder."""
        paths: list[str] = patiently(f"listing {self.uri}/{folder}", lambda: self.fs.find(self.path(folder)))
        return paths


def final_name(name: str) -> str:
    """The path that a temporary file is written for; any other path is returned as it is."""
    folder, slash, base = name.rpartition("/")
    match = _TEMPORARY.fullmatch(base)
    return f"{folder}{slash}{match[1]}" if match else name


def missing_directories(store: Store) -> list[str]:
    """The directories that writing to an output on a disk will create, deepest first; none in an object store."""
    root = Path(store.root)
    return [str(path) for path in (root, *root.parents) if not path.exists()] if store.local else []


def remove_empty(directories: Sequence[str]) -> None:
    """Remove the empty directories among these, in order: give the deepest first to remove nested ones."""
    for directory in directories:
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def _opened(path: str) -> BinaryIO:
    """Open a new file and create its directories. Tries again if another command deletes them while empty."""
    for _ in range(_ATTEMPTS):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return open(path, "wb")
    return open(path, "wb")


def _delete_temporaries(directory: str, names: Sequence[str], before: float) -> None:
    """Delete the temporary files in a directory that were last written before a time, in seconds since 1970."""
    for name in names:
        if name[0] != "." or not _TEMPORARY.fullmatch(name):
            continue
        with contextlib.suppress(FileNotFoundError):
            if os.stat(f"{directory}/{name}").st_mtime < before:
                os.unlink(f"{directory}/{name}")
