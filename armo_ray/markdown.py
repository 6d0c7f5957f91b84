"""The parts that dataset cards have in common, as the Hugging Face hub and its `datasets` read them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CARD = "README.md"


def front_matter(
    configs: Mapping[str, Mapping[str, str]], tags: Iterable[str], rows: int | None = None
) -> list[str]:
    """The head of a card: which files each configuration and split has, the first one by default, tags, size."""
    lines = ["---"]
    if configs:
        lines.append("configs:")
    for i, (name, splits) in enumerate(configs.items()):
        lines.append(f"- config_name: {name}")
        lines += ["  default: true"] if i == 0 and len(configs) > 1 else []
        lines.append("  data_files:")
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    lines += ["tags:", *(f"- {tag}" for tag in tags)]
    if rows is not None:
        lines += ["size_categories:", f"- {size_category(rows)}"]
    return [*lines, "---"]


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
