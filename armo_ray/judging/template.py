"""Message templates: text with placeholders, which are filled in one pass.

`{prompt}` is a placeholder, `{{prompt}}` is the text `{prompt}`, and any other brace is itself, so that JSON can be
written as it is. Braces in a value are never read again.
"""

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_BRACED = re.compile(
    r"\{\{(?P<literal>[A-Za-z_]\w*(?::[^{}\n]+)?)\}\}|\{(?P<name>[A-Za-z_]\w*(?::[^{}\n]+)?)\}"
)

Part = tuple[bool, str]  # whether it is a placeholder, and its name or the text


@dataclass(frozen=True, slots=True)
class Template:
    """Text and placeholders in turn."""

    parts: tuple[Part, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The placeholders, each once."""
        return tuple(dict.fromkeys(text for is_name, text in self.parts if is_name))

    def fill(self, value_of: Callable[[str], str]) -> str:
        """The text with every placeholder replaced by its value, which is not looked at again."""
        return "".join(value_of(text) if is_name else text for is_name, text in self.parts)


def template_of(text: str) -> Template:
    """The template that a judge file writes."""
    parts: list[Part] = []
    end = 0
    for found in _BRACED.finditer(text):
        parts.append((False, text[end : found.start()]))
        parts.append((True, found["name"]) if found["name"] else (False, "{" + found["literal"] + "}"))
        end = found.end()
    return Template(_joined([*parts, (False, text[end:])]))


def format_template(text: str, fields: Mapping[str, str]) -> Template:
    """The template of a text for Python's str.format; `fields` are the templates that stand for its fields.

    Raises ValueError on any other field, and on one that the text does not have.
    """
    parts: list[Part] = []
    unused = set(fields)
    for literal, field, spec, conversion in string.Formatter().parse(text):
        parts.append((False, literal))
        if field is None:
            continue
        if field not in fields or spec or conversion:
            raise ValueError(f"it has the field {{{field}}}, which fields does not name")
        unused.discard(field)
        parts.extend(template_of(fields[field]).parts)
    if unused:
        raise ValueError(f"it has no field {{{min(unused)}}}")
    return Template(_joined(parts))


def _joined(parts: list[Part]) -> tuple[Part, ...]:
    """The parts without empty texts, texts in a row as one."""
    out: list[Part] = []
    for is_name, text in parts:
        if not is_name and out and not out[-1][0]:
            out[-1] = (False, out[-1][1] + text)
        elif text:
            out.append((is_name, text))
    return tuple(out)
