"""Dataset cards, README.md, as people, the Hugging Face hub and its `datasets` read them."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from armo_ray.formatting.templates import render
from armo_ray.outputs.options import DatasetOptions
from armo_ray.storage import commits
from armo_ray.storage.records import PartEntry
from armo_ray.version import __version__

CARD = "README.md"


class Split(NamedTuple):
    """The files of a split, a glob or their paths, and its parts with their rows and bytes, None while more may be
    written.

    `datasets` refuses a split with more or fewer rows than its parts have.
    """

    files: str | Sequence[str]
    parts: Sequence[PartEntry] | None


# the splits of each configuration, by name; the first configuration is the default
Configs = Mapping[str, Mapping[str, Split]]


def card(
    template: str,
    configs: Configs,
    tags: Iterable[str],
    state: object,
    rows: int | None = None,
    **values: Any,
) -> str:
    """The text of a card whose template includes the front matter.

    Args:
        template: path within the package.
        state: what differs between any two states of the data. The cache of `datasets` tells data sets apart only by
            the name of their folder and by their card.
        rows: of all data, for the size category; None leaves it out.
        values: what else the template takes.
    """
    return render(
        template,
        configs=configs,
        tags=tags,
        state=hashlib.blake2b(json.dumps(state).encode(), digest_size=16).hexdigest(),
        size_category=None if rows is None else size_category(rows),
        version=__version__,
        now=commits.now(),
        **values,
    )


def dataset_card(
    uri: str,
    title: str,
    about: str,
    options: DatasetOptions,
    splits: Mapping[str, Split],
    model: Mapping[str, Any] | None = None,
    counts: Mapping[str, Any] | None = None,
) -> str:
    """The card of a dataset that a command made from scores: what a row is, from what, by which options."""
    parts = [part for split in splits.values() for part in split.parts or ()]
    return card(
        "outputs/templates/README.md.jinja",
        {"default": splits} if splits else {},
        ["armo-ray"],
        (uri, commits.now(), [part.to_dict() for part in parts]),
        title=title,
        about=about,
        scores=options.scores,
        options=options.model_dump(mode="json", exclude_defaults=True, exclude={"scores"}),
        model=model,
        counts=counts,
    )


def size_category(rows: int) -> str:
    """The hub's name for a number of rows: n<1K, 1K<n<10K, ..., n>1T."""
    bounds = [f"{step}{unit}" for unit in "KMBT" for step in (1, 10, 100)][:-2]
    for i, bound in enumerate(bounds):
        if rows < 10 ** (i + 3):
            return f"{bounds[i - 1]}<n<{bound}" if i else f"n<{bound}"
    return f"n>{bounds[-1]}"
