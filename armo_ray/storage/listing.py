"""The files that an input (a file, directory or glob) names. Links are followed, except in loops."""

import errno
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from armo_ray.storage.filesystem import S3, speaks

# kinds of names that are not read: singular and plural
OTHER, HIDDEN = ("other file", "other files"), ("hidden name", "hidden names")
BROKEN = ("broken link", "broken links")
READ = ("link to a shard already read", "links to shards already read")
READ_DIRECTORY = ("link to a directory already read", "links to directories already read")

Counts = Counter[tuple[str, str]]

_BROKEN = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR}
_GONE = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True)
class File:
    """A file below an input. A hard link counts as a separate file, as a copy does."""

    path: str
    info: Mapping[str, Any]  # as fsspec returns it; for a link, that of its target
    real: str  # the path without links
    linked: bool = False  # whether the path goes through a link below the input

    @property
    def rank(self) -> tuple[bool, bool, str]:
        """Sort key of the names of one file; the smallest is used: one without links, else the first by name."""
        return self.linked, self.path != self.real, self.path


@dataclass
class Listing:
    """The files to read, and counts of the names that are not read."""

    is_file: bool  # whether the input itself is a file
    files: list[File] = field(default_factory=list)
    passed_over: Counts = field(default_factory=Counter)
    other_suffixes: set[str] = field(default_factory=set)

    def skipped(self) -> str:
        """What is not read, such as `3 other files (.md, .txt), 1 hidden name`."""
        suffixes = f" ({', '.join(sorted(self.other_suffixes))})"
        return ", ".join(
            f"{count} {kind[count > 1]}{suffixes if kind == OTHER else ''}"
            for kind, count in sorted(self.passed_over.items())
            if count
        )


def list_files(fs: Any, path: str, is_read: Callable[[str], bool]) -> Listing:
    """The files to read that a path, directory or glob names; if a glob names none, those below its directories.

    Raises OSError if it cannot be listed.
    """
    try:
        kind = fs.info(path)["type"]
    except FileNotFoundError:
        kind = None
    glob = kind is None and any(c in path for c in "*?[")
    listing = _list(fs, path, kind == "file", glob, is_read)
    if glob and not listing.files:
        below = _list(fs, f"{path.rstrip('/')}/**", False, True, is_read)
        return below if below.files else listing
    return listing


def _list(fs: Any, path: str, is_file: bool, glob: bool, is_read: Callable[[str], bool]) -> Listing:
    listing, local = Listing(is_file), isinstance(fs, LocalFileSystem)
    names: Mapping[str, Any]
    if is_file:
        names = {path: os.path.islink(path) if local else fs.info(path)}
    else:
        names = _below(path, glob, listing.passed_over) if local else _remote(fs, path, glob)
    base = re.split(r"[*?[]", path)[0].removesuffix("/")
    for name, entry in sorted(names.items()):
        if hidden(name[len(base) :]):
            listing.passed_over[HIDDEN] += 1
        elif not is_read(name):
            listing.passed_over[OTHER] += 1
            listing.other_suffixes.add(os.path.splitext(name)[1] or "no suffix")
        elif isinstance(entry, bool):
            listing.files += _local_file(fs, name, entry)
        else:
            listing.files.append(File(name, entry, name))
    return listing


def _local_file(fs: Any, path: str, linked: bool) -> list[File]:
    """The file, or no entry if it was deleted since it was listed or is a pipe or socket."""
    try:
        info = fs.info(path)
    except FileNotFoundError:
        return []
    return [File(path, info, os.path.realpath(path), linked)] if info["type"] == "file" else []


def _remote(fs: Any, path: str, glob: bool) -> dict[str, Any]:
    """All files below a prefix, with their info.

    A glob is matched here, against one listing of all names with its fixed prefix. fsspec's own glob lists one
    directory after the other and treats one that it cannot list as empty.
    """
    options = {}
    if glob:
        folder, _, prefix = re.split(r"[*?[]", path)[0].rpartition("/")
        options = {"prefix": prefix} if prefix and speaks(fs, S3) else {}
    try:
        entries: dict[str, Any] = fs.find(folder if glob else path, detail=True, **options)
    except FileNotFoundError:
        return {}
    matches = re.compile(glob_translate(path) if glob else "").match
    return {name: entry for name, entry in entries.items() if matches(name)}


def _below(path: str, glob: bool, passed_over: Counts) -> dict[str, bool]:
    """The local files that a directory or glob names, and whether the path of each goes through a link."""
    if not glob:
        if os.path.islink(path) and not os.path.exists(path):
            passed_over[BROKEN] += 1
        return dict(_walk(path, None, passed_over))
    folder = re.split(r"[*?[]", path)[0].rpartition("/")[0]
    matches = re.compile(glob_translate(path)).match
    steps = path[len(folder) + 1 :].split("/")
    uncounted: Counts = Counter()  # most of these names do not match the glob
    files = {n: linked for n, linked in _walk(folder or "/", steps, uncounted) if matches(n)}
    passed_over[BROKEN] += uncounted[BROKEN]
    return files


def _walk(top: str, steps: list[str] | None, passed_over: Counts) -> Iterator[tuple[str, bool]]:
    """Every file below a directory, and whether its path goes through a link.

    Each directory is read once, preferably under its own name rather than through a link. With the `steps` of a glob
    it is read under every name that may match, but never inside itself.
    """
    own: list[tuple[str, bool, tuple[str, ...]]] = [(top, False, ())]
    links: list[tuple[str, bool, tuple[str, ...]]] = []
    read: set[str] = set()
    while own or links:
        path, linked, above = own.pop() if own else links.pop(0)
        real = os.path.realpath(path)
        if real in (read if steps is None else above):
            passed_over[READ_DIRECTORY] += 1
            continue
        read.add(real)
        for name, is_link, is_directory in _entries(path, passed_over):
            below = path.rstrip("/") + "/" + name
            if not is_directory:
                yield below, linked or is_link
            elif steps is None and hidden(below[len(top) :]):
                passed_over[HIDDEN] += 1
            elif steps is None or _may_match(steps, len(above), name):
                (links if is_link else own).append((below, linked or is_link, (*above, real)))


def _entries(path: str, passed_over: Counts) -> Iterator[tuple[str, bool, bool]]:
    """The entries of a directory: name, whether it is a link, whether it is a directory or a link to one."""
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except _GONE:
        return
    for entry in entries:
        try:
            entry.stat()
            yield entry.name, entry.is_symlink(), entry.is_dir()
        except OSError as error:
            if error.errno not in _BROKEN:
                raise
            if entry.is_symlink() and not hidden(f"/{entry.name}"):
                passed_over[BROKEN] += 1


def _may_match(steps: list[str], depth: int, name: str) -> bool:
    """Whether a glob may match files in a directory of this name, `depth` levels below its fixed prefix."""
    if "**" in steps[: depth + 1]:
        return True
    return depth < len(steps) - 1 and bool(re.match(glob_translate(steps[depth]), name))


def hidden(below: str) -> bool:
    """Whether a name below what the input spells out begins with an underscore or a dot."""
    return any(name.startswith(("_", ".")) for name in below.split("/")[1:])
