"""Whether a chat template renders all that a conversation says.

Every text of it is marked in its middle with a number between two characters that it does not hold, and looked
for, as it is or as JSON or Python writes it, in what the template makes of the marked ones: a text that a template
drops is missed even where another text holds the same words.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from armo_ray.model.chat import Messages

Path = tuple[Any, ...]  # number of the message, or "tools", and the keys down to a text
Change = Callable[[str, Path], str]
Write = Callable[[Messages, list[Any] | None], str]  # a template

# Noncharacters, never meant for text, then private use: the first that a text lacks can mark a place in it.
_MARKS = (*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xFFFFE))
_KEY = object()  # ends the path of a key itself
_TAG = re.compile(r"(</?think>)")  # what templates move texts by
_READ_ONLY = {"type", "required", "format", "$schema", "$ref"}  # of a schema: templates need not write these


def unused(texts: str) -> str:
    """A character that some texts do not hold."""
    return next(chr(code) for code in _MARKS if chr(code) not in texts)


def texts_of(messages: Messages, tools: list[Any] | None) -> list[str]:
    """Every text of a conversation but its roles: of names and objects in it as well."""
    found: list[str] = []

    def note(text: str, path: Path) -> str:
        found.append(text)
        return text

    changed(messages, tools, note)
    return found


def changed(messages: Messages, tools: list[Any] | None, change: Change) -> tuple[Messages, list[Any] | None]:
    """A conversation with other texts; its roles and keys stay, but for those of objects."""
    told = [
        {key: held if key == "role" else _each(held, change, (i, key)) for key, held in message.items()}
        for i, message in enumerate(messages)
    ]
    return told, tools and [_each(tool, change, ("tools",)) for tool in tools]


def _each(value: Any, change: Change, path: Path) -> Any:
    if isinstance(value, str):
        return change(value, path)
    if isinstance(value, list):
        return [_each(entry, change, path) for entry in value]
    if isinstance(value, dict):
        return {change(k, (*path, k, _KEY)): _each(held, change, (*path, k)) for k, held in value.items()}
    return value


def left_out(write: Write, messages: Messages, tools: list[Any] | None, first: int = 0) -> str | None:
    """What a template does not render of the tools, and of the messages from `first` on; None if it renders all."""
    mark = unused("".join(texts_of(messages, tools)))
    wanted: list[tuple[str, Path]] = []

    def marked(piece: str, path: Path) -> str:
        if not piece.strip() or _TAG.fullmatch(piece):
            return piece
        half = len(piece) // 2
        piece = f"{piece[:half]}{mark}{len(wanted)}{mark}{piece[half:]}"
        wanted.append((piece.strip(), path))
        return piece

    def change(text: str, path: Path) -> str:
        return "".join(marked(piece, path) for piece in _TAG.split(text)) if _is_shown(path) else text

    text = write(*changed(messages, tools, change))
    for piece, path in wanted:
        if (path[0] == "tools" or path[0] >= first) and not _holds(text, piece):
            return _named(path, messages)
    return None


def _is_shown(path: Path) -> bool:
    """Whether a template has to write the text at a path, and need not compare it with another."""
    if path[0] == "tools":
        return path[-1] is not _KEY and path[-1] not in _READ_ONLY
    if path[1] != "tool_calls":
        return path[1] in ("content", "reasoning_content")
    return (path[2:4] == ("function", "arguments") and path[4:] != (_KEY,)) or path[2:] == (
        "function",
        "name",
    )


def _holds(text: str, piece: str) -> bool:
    if piece in text:
        return True
    forms = json.dumps(piece, ensure_ascii=False), json.dumps(piece), repr(piece)
    return any(form[1:-1] in text for form in forms)


def _named(path: Path, messages: Messages) -> str:
    if path[0] == "tools":
        return "the tools"
    what = {"content": "text", "reasoning_content": "reasoning"}.get(path[1], "tool calls")
    return f"the {what} of turn {path[0] + 1} ({messages[path[0]]['role']})"
