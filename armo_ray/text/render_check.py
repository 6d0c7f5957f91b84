"""A check that a chat template renders all the text of a conversation.

Each text gets a mark in its middle: a number between two characters that occur nowhere in the conversation. The
rendered conversation must then contain each marked text as it is, or as JSON or Python would quote it. A text that
the template drops is noticed even if another text has the same words.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from armo_ray.model.messages import Messages

Path = tuple[Any, ...]  # index of the message, or "tools", followed by the keys that lead to a text
Change = Callable[[str, Path], str]
Write = Callable[[Messages, list[Any] | None], str]  # a template

# Characters that can mark a place in text: noncharacters, which text never has, then private-use characters.
_MARKS = (*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xFFFFE))
_KEY = object()  # the last entry of a path that leads to a key, not to its value
_TAG = re.compile(r"(</?think>)")  # templates move text between these tags
_OPTIONAL_KEYS = {"type", "required", "format", "$schema", "$ref"}  # schema keys that a template may omit


def unused(text: str) -> str:
    """A marking character that does not occur in the text."""
    return next(chr(code) for code in _MARKS if chr(code) not in text)


def texts_of(messages: Messages, tools: list[Any] | None) -> list[str]:
    """Every text of a conversation except its roles, including names and nested objects."""
    texts: list[str] = []

    def note(text: str, path: Path) -> str:
        texts.append(text)
        return text

    changed(messages, tools, note)
    return texts


def changed(messages: Messages, tools: list[Any] | None, change: Change) -> tuple[Messages, list[Any] | None]:
    """A conversation with `change` applied to every text, and to the keys of nested objects; roles stay."""
    changed_messages = [
        {key: value if key == "role" else _each(value, change, (i, key)) for key, value in message.items()}
        for i, message in enumerate(messages)
    ]
    return changed_messages, tools and [_each(tool, change, ("tools",)) for tool in tools]


def _each(value: Any, change: Change, path: Path) -> Any:
    if isinstance(value, str):
        return change(value, path)
    if isinstance(value, list):
        return [_each(entry, change, path) for entry in value]
    if isinstance(value, dict):
        return {change(k, (*path, k, _KEY)): _each(entry, change, (*path, k)) for k, entry in value.items()}
    return value


def left_out(write: Write, messages: Messages, tools: list[Any] | None, first: int = 0) -> str | None:
    """A description of a text that a template does not render; None if it renders all text.

    Checks the tools and the messages from index `first` on.
    """
    mark = unused("".join(texts_of(messages, tools)))
    expected: list[tuple[str, Path]] = []

    def marked(piece: str, path: Path) -> str:
        if not piece.strip() or _TAG.fullmatch(piece):
            return piece
        half = len(piece) // 2
        piece = f"{piece[:half]}{mark}{len(expected)}{mark}{piece[half:]}"
        expected.append((piece.strip(), path))
        return piece

    def change(text: str, path: Path) -> str:
        return "".join(marked(piece, path) for piece in _TAG.split(text)) if _is_shown(path) else text

    text = write(*changed(messages, tools, change))
    for piece, path in expected:
        if (path[0] == "tools" or path[0] >= first) and not _holds(text, piece):
            return _description(path, messages)
    return None


def _is_shown(path: Path) -> bool:
    """Whether a template must write the text at a path, and does not only compare it with a constant."""
    if path[0] == "tools":
        return path[-1] is not _KEY and path[-1] not in _OPTIONAL_KEYS
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


def _description(path: Path, messages: Messages) -> str:
    if path[0] == "tools":
        return "the tools"
    what = {"content": "text", "reasoning_content": "reasoning"}.get(path[1], "tool calls")
    return f"the {what} of turn {path[0] + 1} ({messages[path[0]]['role']})"
