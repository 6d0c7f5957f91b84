"""The files that an input names: a file, a directory or a glob. Links are followed, and no loop of them is."""

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

# what is passed over: one, several
OTHER, HIDDEN = ("other file", "other files"), ("hidden name", "hidden names")
BROKEN = ("broken link", "broken links")
READ = ("link to a shard already read", "links to shards already read")
READ_DIRECTORY = ("link to a directory already read", "links to directories already read")

Counts = Counter[tuple[str, str]]

_BROKEN = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR}
_GONE = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True)
class File:
    """A file below an input. A hard link is a file of its own, as a copy is."""

    path: str
    info: Mapping[str, Any]  # what the storage says of it: of a link, of the file that it leads to
    real: str  # the path without links
    linked: bool = False  # whether a link below the input leads to it

    @property
    def rank(self) -> tuple[bool, bool, str]:
        """Of several names of one file the smallest is kept: the one without links, else the first in order."""
        return self.linked, self.path != self.real, self.path


@dataclass
class Listing:
    """The files that are read, and how much of what else there was, by kind."""

    is_file: bool  # whether the input is a file itself
    files: list[File] = field(default_factory=list)
    passed_over: Counts = field(default_factory=Counter)
    other_suffixes: set[str] = field(default_factory=set)

    def told(self) -> str:
        """What is passed over: `3 other files (.md, .txt), 1 hidden name`."""
        names = f" ({', '.join(sorted(self.other_suffixes))})"
        return ", ".join(
            f"{count} {kind[count > 1]}{names if kind == OTHER else ''}"
            for kind, count in sorted(self.passed_over.items())
            if count
        )


def list_files(fs: Any, path: str, is_read: Callable[[str], bool]) -> Listing:
    """What a path, directory or glob names. Raises OSError where it cannot be listed."""
    try:
        kind = fs.info(path)["type"]
    except FileNotFoundError:
        kind = None
    listing = Listing(kind == "file")
    if kind == "file":
        names = {path: os.path.islink(path)} if isinstance(fs, LocalFileSystem) else {path: fs.info(path)}
    elif isinstance(fs, LocalFileSystem):
        names = _below(path, kind is None, listing.passed_over)
    else:
        names = _remote(fs, path, kind is None)
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
    """None where it was deleted since it was listed, or is a pipe or a socket."""
    try:
        info = fs.info(path)
    except FileNotFoundError:
        return []
    return [File(path, info, os.path.realpath(path), linked)] if info["type"] == "file" else []


def _remote(fs: Any, path: str, glob: bool) -> dict[str, Any]:
    """All files below a prefix. A glob is matched here, against one listing of all that begins like it: fsspec's
    own asks for one directory after the other, and takes one that cannot be listed for empty."""
    options = {}
    if glob := glob and any(c in path for c in "*?["):
        folder, _, begin = re.split(r"[*?[]", path)[0].rpartition("/")
        options = {"prefix": begin} if begin and speaks(fs, S3) else {}
    try:
        found: dict[str, Any] = fs.find(folder if glob else path, detail=True, **options)
    except FileNotFoundError:
        return {}
    matches = re.compile(glob_translate(path) if glob else "").match
    return {name: entry for name, entry in found.items() if matches(name)}


def _below(path: str, glob: bool, passed_over: Counts) -> dict[str, bool]:
    """The local files that a directory or glob names, and whether a link below it leads to each."""
    if not (glob and any(c in path for c in "*?[")):
        if os.path.islink(path) and not os.path.exists(path):
            passed_over[BROKEN] += 1
        return dict(_walk(path, None, passed_over))
    folder = re.split(r"[*?[]", path)[0].rpartition("/")[0]
    matches = re.compile(glob_translate(path)).match
    steps = path[len(folder) + 1 :].split("/")
    uncounted: Counts = Counter()  # most of it does not match
    found = {n: linked for n, linked in _walk(folder or "/", steps, uncounted) if matches(n)}
    passed_over[BROKEN] += uncounted[BROKEN]
    return found


def _walk(top: str, steps: list[str] | None, passed_over: Counts) -> Iterator[tuple[str, bool]]:
    """Every file below a directory, and whether a link leads to it.

    Each directory is read once, under its own name if that is below `top` too. With the `steps` of a glob, under
    every name that may match, but never within itself.
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
    """Name, whether it is a link, and whether it is or leads to a directory, of what lies in a directory."""
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
    """Whether a glob may name files in a directory of this name, so far below where the glob begins."""
    if "**" in steps[: depth + 1]:
        return True
    return depth < len(steps) - 1 and bool(re.match(glob_translate(steps[depth]), name))


def hidden(below: str) -> bool:
    """Whether a name that follows what the input spells out begins with _ or a dot."""
    return any(part.startswith(("_", ".")) for part in below.split("/")[1:])
