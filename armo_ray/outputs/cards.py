"""The parts that dataset cards have in common, as the Hugging Face hub and its `datasets` read them."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from armo_ray.storage.records import PartEntry

CARD = "README.md"


Parts = Mapping[str, Mapping[str, Iterable[PartEntry]]]  # of each split of each configuration


def front_matter(
    configs: Mapping[str, Mapping[str, str]],
    tags: Iterable[str],
    rows: int | None = None,
    state: object = None,
    parts: Parts | None = None,
) -> list[str]:
    """The head of a card: which files each configuration and split has, the first one by default, tags, size.

    Args:
        state: what is different wherever, and whenever, the data are: `datasets` looks for a dataset in its cache
            by its folder's name and its card alone.
        parts: what the splits hold, if that is certain; `datasets` refuses files with more rows or less.
    """
    lines = ["---"]
    if configs:
        lines.append("configs:")
    for i, (name, splits) in enumerate(configs.items()):
        lines.append(f"- config_name: {name}")
        lines += ["  default: true"] if i == 0 and len(configs) > 1 else []
        lines.append("  data_files:")
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    lines += _dataset_info(configs, f"state {_hash(state)}", parts or {}) if configs else []
    lines += ["tags:", *(f"- {tag}" for tag in tags)]
    if rows is not None:
        lines += ["size_categories:", f"- {size_category(rows)}"]
    return [*lines, "---"]


def _dataset_info(configs: Iterable[str], state: str, parts: Parts) -> list[str]:
    lines = ["dataset_info:"]
    for config in configs:
        lines += [f"- config_name: {config}", f"  description: {state}"]
        lines += ["  splits:"] if parts.get(config) else []
        for split, held in parts.get(config, {}).items():
            entries = list(held)
            lines += [f"  - name: {split}", f"    num_bytes: {sum(part.bytes for part in entries)}"]
            lines.append(f"    num_examples: {sum(part.rows for part in entries)}")
    return lines


def _hash(value: object) -> str:
    return hashlib.blake2b(json.dumps(value, default=str).encode(), digest_size=16).hexdigest()


def size_category(rows: int) -> str:
    """The hub's name for so many rows: n<1K, 1K<n<10K, ..., n>1T."""
    bounds = [f"{step}{unit}" for unit in "KMBT" for step in (1, 10, 100)][:-2]
    for i, bound in enumerate(bounds):
        if rows < 10 ** (i + 3):
            return f"{bounds[i - 1]}<n<{bound}" if i else f"n<{bound}"
    return f"n>{bounds[-1]}"


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A table; whatever a cell holds, it stays one cell."""
    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    return ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *lines]


def cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", " ")
