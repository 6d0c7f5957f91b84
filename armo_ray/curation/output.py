"""Writing a dataset: parts first; its card and, last, its manifest make it whole."""

import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray import __version__
from armo_ray.curation.options import CurationOptions
from armo_ray.curation.scores import Scores
from armo_ray.errors import ConfigError
from armo_ray.markdown import CARD, front_matter, table
from armo_ray.storage import commits
from armo_ray.storage.retries import explain
from armo_ray.storage.store import Store

DATA = "data"


@dataclass(frozen=True)
class Made:
    """What a dataset's manifest and card tell of it."""

    command: str
    about: str  # what a row is, for people
    scores: Scores
    options: CurationOptions
    parts: Sequence[Mapping[str, Any]]  # as write_part returned them
    counts: Mapping[str, Any]  # what was kept, and what was left out by which rule
    details: Mapping[str, Any] = field(default_factory=dict)  # what else belongs into the manifest


@contextmanager
def new_output(uri: str) -> Iterator[Store]:
    """A place that holds nothing yet; what is written there before a failure is deleted again.

    Raises ConfigError where something is there already, or nothing can be.
    """
    store = Store(uri)
    try:
        found = store.find("")
    except OSError as error:
        raise ConfigError(f"output {store.uri}: cannot be listed: {explain(error)}") from error
    if found:
        whole = any(path == store.path(commits.SUCCESS) for path in found)
        told = "holds a dataset" if whole else f"is not empty, and holds no whole dataset ({found[0]})"
        raise ConfigError(f"output {store.uri}: {told}: delete it, or choose another")
    try:
        yield store
    except BaseException:
        clear(store)
        raise


def clear(store: Store) -> None:
    """Delete all that is there."""
    if store.local:
        shutil.rmtree(store.root, ignore_errors=True)
    else:
        for path in store.find(""):
            store.delete(path.removeprefix(f"{store.root}/"))


def write_part(store: Store, split: str, number: int, table: pa.Table, kind: str) -> dict[str, Any]:
    """Write rows as part `number` of a split; `kind` is parquet or jsonl. Returns path, rows and bytes."""
    name = f"{DATA}/{split}/part-{number:05d}.{kind}"
    content = encode(table, kind)
    store.write(name, content)
    return {"path": name, "rows": table.num_rows, "bytes": len(content)}


def encode(table: pa.Table, kind: str) -> bytes:
    """The content of a file of rows; `kind` is parquet or jsonl."""
    sink = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, sink, compression="zstd")
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
        "parts": list(made.parts),
        "version": __version__,
        "finished_at": commits.now(),
    }
    store.write(commits.SUCCESS, commits.to_json(manifest))


def _card(store: Store, made: Made) -> str:
    splits: dict[str, list[Mapping[str, Any]]] = {}
    for part in made.parts:
        splits.setdefault(part["path"].split("/")[1], []).append(part)
    files = {split: f"{DATA}/{split}/*.{made.options.format}" for split in splits}
    model = made.scores.metadata
    given = made.options.model_dump(mode="json", exclude_defaults=True)
    return "\n".join(
        [
            *front_matter(
                {"default": files},
                ["armo-ray"],
                None,
                (store.uri, commits.now(), made.parts),
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
