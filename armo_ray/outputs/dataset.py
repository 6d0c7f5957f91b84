"""Writing a dataset: parts first; its card and, last, its manifest make it whole."""

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
import pyarrow.parquet as pq

from armo_ray.errors import ConfigError
from armo_ray.outputs.cards import CARD, front_matter, table
from armo_ray.outputs.options import DatasetOptions
from armo_ray.outputs.scores import Scores
from armo_ray.storage import commits, lock
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.json_files import sealed
from armo_ray.storage.parts import DATA, put
from armo_ray.storage.records import PartEntry
from armo_ray.storage.retries import describe_error
from armo_ray.storage.store import Store, final_name, remove_empty
from armo_ray.version import __version__

logger = logging.getLogger(__name__)

# all that the commands write into a place of their own
_WRITTEN = re.compile(
    r"(data|scores|rejects)/(.+/)?part-[^/]+\.(parquet|jsonl)|_commits/[^/]+\.json|_work/.+|_run\.json|_SUCCESS|"
    r"README\.md|contaminated\.jsonl|(rules|comparison|evaluation)\.json|[a-z]+\.svg"
)


@dataclass(frozen=True)
class Made:
    """What a dataset's manifest and card tell of it."""

    command: str
    about: str  # what a row is, for people
    scores: Scores
    options: DatasetOptions
    parts: Sequence[PartEntry]  # as write_part returned them
    counts: Mapping[str, Any]  # what was kept, and what was left out by which rule
    details: Mapping[str, Any] = field(default_factory=dict)  # what else belongs into the manifest


@contextmanager
def new_output(uri: str, command: str, engine: str = "duckdb", replace: bool = False) -> Iterator[Store]:
    """A place that this command alone writes, and that holds nothing yet; what it wrote before a failure is deleted.

    What a command that was killed on this machine left there is deleted first. With `replace`, there may be something,
    and it stays.

    Raises ConfigError where something is there already, another command is at it, or nothing can be written.
    """
    store = Store(uri)
    if not replace:
        _check_unclaimed(store)
    with lock.held(store, command, disposable=engine == "duckdb") as held:
        if not replace:
            _check_empty(held)
        try:
            yield store
        except BaseException:
            if not replace:
                _undo(held)
            raise


def names_in(store: Store) -> list[str]:
    """The files of a place, none where there is no such place."""
    try:
        paths = store.find("")
    except OSError as error:
        raise ConfigError(f"output {store.uri}: cannot be listed: {describe_error(error)}") from error
    # where the last object was deleted a server may list the place itself; on a disk that would be a file
    return [path.removeprefix(f"{store.root}/") for path in paths if store.local or path != store.root]


def delete(store: Store, names: Sequence[str]) -> None:
    """Delete files and, on a disk, their directories where nothing else is in them."""
    in_parallel(store.delete, names)
    if store.local:
        folders = {folder for name in names for folder in map(str, PurePath(name).parents[:-1])}
        remove_empty([store.path(folder) for folder in sorted(folders, key=len, reverse=True)])


def written(names: Sequence[str]) -> list[str]:
    """Of the names in a place those of files that the commands which make datasets and tables write."""
    return [name for name in names if _WRITTEN.fullmatch(final_name(name))]


def _check_unclaimed(store: Store) -> None:
    """Raises ConfigError if something is there, without a lock that says whose it is; writes nothing."""
    names = names_in(store)
    if lock.LOCK not in names and (others := _besides_lock(names)):
        raise ConfigError(_filled(store, others))


def _besides_lock(names: Sequence[str]) -> list[str]:
    return [name for name in names if final_name(name) != lock.LOCK]


def _check_empty(held: lock.Held) -> None:
    """Deletes what a killed command left there. Raises ConfigError if anything else is there."""
    names = _besides_lock(names_in(held.store))
    if not names:
        return
    if not held.remains or commits.SUCCESS in names or len(written(names)) < len(names):
        raise ConfigError(_filled(held.store, names))
    logger.info("%s: deleting %d files of a command that was killed", held.store.uri, len(names))
    delete(held.store, names)


def _filled(store: Store, names: Sequence[str]) -> str:
    what = f"is not empty, and holds no whole dataset ({names[0]})"
    if commits.SUCCESS in names:
        what = "holds a dataset"
    return f"output {store.uri}: {what}: delete it, or choose another"


def _undo(held: lock.Held) -> None:
    """Delete what this command wrote, unless another one has the place now; the caller reports the failure."""
    try:
        if held.is_ours():
            delete(held.store, written(names_in(held.store)))
    except (OSError, RuntimeError, ConfigError) as error:
        logger.warning("%s: what was written cannot be deleted: %s", held.store.uri, error)


def write_part(store: Store, split: str, number: int, table: pa.Table, kind: str) -> PartEntry:
    """Write rows as part `number` of a split; `kind` is parquet or jsonl."""
    return put(store, f"{DATA}/{split}/part-{number:05d}.{kind}", encode(table, kind), table.num_rows)


def encode(table: pa.Table, kind: str) -> bytes:
    """The content of a file of rows; `kind` is parquet or jsonl."""
    sink = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    else:
        for batch in table.to_batches(max_chunksize=1024):
            lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in batch.to_pylist())
            sink.write("".join(lines).encode())
    return sink.getvalue()


def finish(store: Store, made: Made) -> None:
    """Write the card, then the manifest: from then on the dataset is whole."""
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
    splits: dict[str, list[PartEntry]] = {}
    for part in made.parts:
        splits.setdefault(part.path.split("/")[1], []).append(part)
    files = {split: f"{DATA}/{split}/*.{made.options.format}" for split in splits}
    model = made.scores.metadata
    given = made.options.model_dump(mode="json", exclude_defaults=True)
    return "\n".join(
        [
            *front_matter(
                {"default": files},
                ["armo-ray"],
                None,
                (store.uri, commits.now()),
                {"default": splits},
            ),
            f"# Made by `armo-ray {made.command}`",
            "",
            made.about,
            "",
            *(f"- scores: `{output}`" for output in made.scores.outputs),
            f"- model: `{model['model']}`, revision {model['model_revision']}, {model['dtype']}, "
            f"fingerprint {model['model_fingerprint']}",
            f"- armo-ray {__version__}, {commits.now()}",
            "",
            *table(("option", ""), given.items()),
            "",
            *table(("count", ""), made.counts.items()),
            "",
        ]
    )
