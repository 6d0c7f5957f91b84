"""Writes a dataset: its parts, then its card, and last its manifest, which makes it complete."""

import io
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import pyarrow as pa

from armo_ray.errors import ConfigError
from armo_ray.outputs.cards import CARD, Split, dataset_card
from armo_ray.outputs.options import DatasetOptions
from armo_ray.outputs.scores import Scores
from armo_ray.storage import commits, lock
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.json_files import Kind, parse, sealed
from armo_ray.storage.parts import DATA, parquet, put
from armo_ray.storage.records import DamagedError, PartEntry
from armo_ray.storage.retries import describe_error
from armo_ray.storage.store import Store, final_name, remove_empty
from armo_ray.version import __version__

logger = logging.getLogger(__name__)

_MANIFEST = Kind({"parts": lambda value: isinstance(value, list | None)}, {})

# every file that commands write into an output of their own
_WRITTEN = re.compile(
    r"(data|scores|rejects|hidden|prompts)/(.+/)?part-[^/]+\.(parquet|jsonl)|_commits/[^/]+\.json|_commits\.parquet|_work/.+|_run\.json|_SUCCESS|"
    r"_increments/[^/]+\.json|_minhash/[^/]+\.parquet|"
    r"README\.md|contaminated\.jsonl|(rules|comparison|evaluation)\.json|[a-z]+\.svg"
)


@dataclass(frozen=True)
class Made:
    """The contents of a dataset's manifest and card."""

    command: str
    about: str  # what a row is, in Markdown
    scores: Scores
    options: DatasetOptions
    parts: Sequence[PartEntry]  # as write_part returned them
    counts: Mapping[str, Any]  # rows kept, and rows left out by each rule
    details: Mapping[str, Any] = field(default_factory=dict)  # more entries of the manifest


@contextmanager
def new_output(uri: str, command: str, engine: str = "duckdb", replace: bool = False) -> Iterator[Store]:
    """Lock an empty output for this command; if the command fails, delete what it wrote.

    Files left there by a command that was killed on this machine are deleted first. With `replace`, the output may
    already contain files, and they stay.

    Raises ConfigError if the output is not empty, another command is writing it, or it cannot be written.
    """
    store = Store(uri)
    if not replace:
        check_unclaimed(store)
    with lock.held(store, command, disposable=engine == "duckdb") as held:
        if not replace:
            check_empty(held)
        try:
            yield store
        except BaseException:
            if not replace:
                _undo(held)
            raise


def names_in(store: Store) -> list[str]:
    """Names of all files in an output, relative to it; none if it does not exist. Raises ConfigError."""
    try:
        paths = store.find("")
    except OSError as error:
        raise ConfigError(f"output {store.uri}: cannot be listed: {describe_error(error)}") from error
    # after its last object is deleted, a server may list the output itself; on a disk that would be a file
    return [path.removeprefix(f"{store.root}/") for path in paths if store.local or path != store.root]


def delete(store: Store, names: Sequence[str]) -> None:
    """Delete files and, on a disk, the directories that become empty."""
    in_parallel(store.delete, names)
    if store.local:
        folders = {folder for name in names for folder in map(str, PurePath(name).parents[:-1])}
        remove_empty([store.path(folder) for folder in sorted(folders, key=len, reverse=True)])


def own_files(names: Sequence[str]) -> list[str]:
    """The names of files that commands write into outputs of their own, among all names in an output."""
    return [name for name in names if _WRITTEN.fullmatch(final_name(name))]


def parts_of(store: Store) -> list[PartEntry] | None:
    """The parts of a dataset or of scores as the manifest lists them, or None if there is no manifest.

    Raises DamagedError if the manifest is damaged.
    """
    try:
        listed = parse(store.read(commits.SUCCESS), _MANIFEST)["parts"]
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedError(f"{store.uri}/{commits.SUCCESS}: damaged: {error}") from error
    if listed is None:  # many parts of scores, listed elsewhere
        manifest = commits.find_manifest(store)
        return None if manifest is None else list(manifest.parts)
    return list(map(PartEntry.from_dict, listed))


def check_unclaimed(store: Store) -> None:
    """Raises ConfigError if the output has files but no lock that says whose they are. Writes nothing."""
    names = names_in(store)
    if lock.LOCK not in names and (others := _besides_lock(names)):
        raise ConfigError(_not_empty(store, others))


def _besides_lock(names: Sequence[str]) -> list[str]:
    return [name for name in names if final_name(name) != lock.LOCK]


def check_empty(held: lock.Held) -> None:
    """Delete the remains of a killed command. Raises ConfigError if the output has any other files."""
    names = _besides_lock(names_in(held.store))
    if not names:
        return
    if not held.remains or commits.SUCCESS in names or len(own_files(names)) < len(names):
        raise ConfigError(_not_empty(held.store, names))
    logger.info("%s: deleting %d files left by a command that was killed", held.store.uri, len(names))
    delete(held.store, names)


def _not_empty(store: Store, names: Sequence[str]) -> str:
    state = f"is not empty, and holds no complete dataset ({names[0]})"
    if commits.SUCCESS in names:
        state = "holds a dataset"
    return f"output {store.uri}: {state}: delete it, or choose another"


def _undo(held: lock.Held) -> None:
    """Delete what this command wrote, unless another command has the output now. Does not raise."""
    try:
        if held.is_ours():
            delete(held.store, own_files(names_in(held.store)))
    except (OSError, RuntimeError, ConfigError) as error:
        logger.warning("%s: cannot delete the files written so far: %s", held.store.uri, error)


def write_part(store: Store, split: str, name: str, table: pa.Table, kind: str) -> PartEntry:
    """Write rows as a part of a split, such as part-00000; `kind` is parquet or jsonl."""
    return put(store, f"{DATA}/{split}/{name}.{kind}", encode(table, kind), table.num_rows)


def encode(table: pa.Table, kind: str) -> bytes:
    """Rows as the content of a file; `kind` is parquet or jsonl."""
    if kind == "parquet":
        return parquet(table)
    sink = io.BytesIO()
    for batch in table.to_batches(max_chunksize=1024):
        lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in batch.to_pylist())
        sink.write("".join(lines).encode())
    return sink.getvalue()


def finish(store: Store, made: Made) -> None:
    """Write the card, then the manifest, which makes the dataset complete."""
    store.write(CARD, _card(store, made).encode())
    manifest = {
        "command": made.command,
        "options": made.options.model_dump(mode="json"),
        "scores": list(made.scores.outputs),
        "model": made.scores.metadata,
        "counts": made.counts,
        **made.details,
        "parts": [part.to_dict() for part in made.parts],
        "version": __version__,
        "finished_at": commits.now(),
    }
    store.write(commits.SUCCESS, sealed(manifest))


def _card(store: Store, made: Made) -> str:
    by_split: dict[str, list[PartEntry]] = {}
    for part in made.parts:
        by_split.setdefault(part.path.split("/")[1], []).append(part)
    grows = "increments" in made.details  # then parts that it no longer consists of may still lie there
    splits = {}
    for name, parts in by_split.items():
        with_rows = [part for part in parts if part.rows]  # `datasets` cannot read others
        is_glob = not grows and len(with_rows) == len(parts)
        files = f"{DATA}/{name}/*.{made.options.format}" if is_glob else [part.path for part in with_rows]
        if with_rows:
            splits[name] = Split(files, with_rows)
    title = f"Made by `armo-ray {made.command}`"
    return dataset_card(store.uri, title, made.about, made.options, splits, made.scores.metadata, made.counts)
