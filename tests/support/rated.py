"""Rows with labels and preferences that their words decide, embedded with a tiny model."""

import json
import random
from pathlib import Path
from typing import Any

from tests.support.local import embed_locally

WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "for",
    "on",
    "with",
    "as",
    "this",
    "are",
    "be",
    "or",
)
LABELS = {"the": "chosen_the,rejected_the", "words": "chosen_words,rejected_words"}


def rated_rows(count: int, seed: int = 0, where: str = "") -> list[dict[str, Any]]:
    """Pairs of which the answer with more "the" is chosen; labels count "the" and words."""
    rng = random.Random(seed)

    def text(length: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(length))

    rows = []
    for i in range(count):
        sides = sorted((text(rng.randint(2, 14)) for _ in range(2)), key=lambda t: t.split().count("the"))
        row: dict[str, Any] = {"prompt": f"{text(4)} {where}{i}?", "chosen": sides[1], "rejected": sides[0]}
        for side in ("chosen", "rejected"):
            words = row[side].split()
            row |= {f"{side}_the": float(words.count("the")), f"{side}_words": float(len(words))}
        rows.append(row)
    return rows


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def embed_rows(model: Path, folder: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    """Embed rows with their labels, unless others are given; returns the output."""
    shard = write_rows(folder / "rows.jsonl", rows)
    given = {"label": LABELS, "unit_rows": 64, **options}
    embed_locally(model, shard, folder / "hidden", **given)
    return folder / "hidden"
