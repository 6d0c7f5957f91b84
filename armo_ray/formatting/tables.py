"""Tables as text, for a terminal and as Markdown."""

import json
from collections.abc import Iterable, Sequence
from typing import Any


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first is aligned left, the others right."""
    rows = list(rows)
    widths = _widths(head, rows)
    lines = (_aligned(row, widths, "  ") for row in (head, ["-" * width for width in widths], *rows))
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]], aligned: bool = False) -> str:
    """A table in Markdown; whatever a cell holds, it stays one cell.

    aligned: pad the cells to be read as text too; the first column is aligned left, the others right.
    """
    heads, cells = list(map(markdown_cell, head)), [list(map(markdown_cell, row)) for row in rows]
    if not aligned:
        lines = [f"| {' | '.join(row)} |" for row in (heads, *cells)]
        return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])
    widths = _widths(heads, cells)
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join(f"| {_aligned(row, widths, ' | ')} |" for row in (heads, rule, *cells))


def markdown_cell(value: Any) -> str:
    """A text as it is, anything else as JSON, with pipes escaped and on one line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", " ")


def _widths(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(head, *rows, strict=True)]


def _aligned(row: Sequence[str], widths: Sequence[int], between: str) -> str:
    cells = (c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
    return between.join(cells)
