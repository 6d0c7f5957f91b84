"""Numbers as text, and the HTML that all sections are made of. Whatever is no Markup is escaped."""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup


def number(value: Any) -> str:
    """Four digits of a fraction, all of a whole number."""
    if value is None:
        return "-"
    if abs(value) < 1e-15:  # the edge of a bin next to 0
        return "0"
    if isinstance(value, int) or (abs(value) < 1e15 and value == int(value)):
        return f"{int(value):,}"
    size = abs(value)
    if size >= 1e6 or size < 1e-4:
        return f"{value:.3g}"
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 4 if size < 0.1 else 3
    return f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %".replace("-0.0 ", "0.0 ")


def date(text: str) -> str:
    """A time of any zone as UTC, to the second."""
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def signed(value: float | None) -> str:
    told = number(value)
    return f"+{told}" if value is not None and value > 0 else told


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], words: int = 1) -> Markup:
    """The first `words` columns are text, the others numbers."""
    heads = Markup("").join(
        Markup('<th scope="col" class="{}">{}</th>').format("" if i < words else "n", name)
        for i, name in enumerate(head)
    )
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(_cell(i, cell, words) for i, cell in enumerate(row)))
        for row in rows
    )
    whole = '<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    return Markup(whole).format(heads, body)


def facts(rows: Iterable[tuple[str, str]]) -> Markup:
    """Names and what they are."""
    lines = (Markup("<dt>{}</dt><dd>{}</dd>").format(name, breakable(value)) for name, value in rows)
    return Markup('<dl class="facts">{}</dl>').format(Markup("").join(lines))


def breakable(text: Any) -> Markup:
    """Text that may go on in a new line within names and paths."""
    return Markup("<wbr>").join(re.split(r"(?<=[_/=])", str(text)))


def _cell(place: int, cell: Any, words: int) -> Markup:
    kind = "bars" if isinstance(cell, Markup) and cell.startswith("<svg") else "" if place < words else "n"
    if cell == "" and place >= words:
        kind = "bars"
    tag = '<th scope="row" class="{}">{}</th>' if place == 0 else '<td class="{}">{}</td>'
    return Markup(tag).format(kind, cell if isinstance(cell, Markup) or place >= words else breakable(cell))


def figure(drawn: Markup, caption: str) -> Markup:
    return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(drawn, caption)


def grid(*figures: Markup) -> Markup:
    return Markup('<div class="grid">{}</div>').format(Markup("").join(figures))


def paragraph(text: str) -> Markup:
    return Markup("<p>{}</p>").format(text)


def heading(text: str) -> Markup:
    return Markup("<h3>{}</h3>").format(text)


def join(*parts: Markup) -> Markup:
    return Markup("").join(parts)
