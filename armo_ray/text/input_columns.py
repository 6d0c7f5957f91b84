"""The columns of an input, the fields nested in them, and which of them may hold conversation content."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

_DEPTH = 6
_ELEMENTS = 4  # how many elements of a list are sampled
_EMPTY_TEXTS = ("", "[]", "{}", "null")

# Columns that hold conversation content in a well-known format, with the column role that reads them, or "" if no
# role does, as for images or fields of a response. The formats: Alpaca and LLaMA-Factory (input, history, system,
# tools, images, videos, audios), Dolly (context), ms-swift (rejected_*, query), OpenAI (functions, tools, developer),
# TRL (image, images, tools), Hugging Face's chat templates (documents), axolotl (system_prompt), OpenOrca
# (system_prompt), exports of reasoning models (thinking, reasoning, reasoning_content), retrieval data (passages).
_COLUMN_ROLE_OF = {
    "input": "input",
    "inputs": "input",
    "context": "input",
    "contexts": "input",
    "passage": "input",
    "passages": "",
    "documents": "",
    "retrieved_documents": "",
    "history": "history",
    "chat_history": "history",
    "conversation_history": "history",
    "system": "system",
    "system_prompt": "system",
    "system_message": "system",
    "developer": "",
    "tools": "tools",
    "functions": "tools",
    "tool_calls": "",
    "function_call": "",
    "image": "",
    "images": "",
    "video": "",
    "videos": "",
    "audio": "",
    "audios": "",
    "attachments": "",
    "thinking": "",
    "reasoning": "",
    "reasoning_content": "",
    "rejected_response": "rejected",
    "rejected_messages": "rejected",
    "rejected_images": "",
    "rejected_tools": "",
}


def _spellings(name: str) -> set[str]:
    """Common spellings of a name: chat_history, Chat_History, CHAT_HISTORY, chatHistory, Chat History, ..."""
    words = name.split("_")
    titled = [word.capitalize() for word in words]
    joined_up = {f"{words[0]}{''.join(titled[1:])}", "".join(titled)}
    return {
        spelled
        for mark in "_- "
        for spelled in (mark.join(words), mark.join(titled), mark.join(words).upper())
    } | {name.capitalize(), *joined_up}


COLUMN_ROLE_OF = {spelled: role for name, role in _COLUMN_ROLE_OF.items() for spelled in _spellings(name)}


@dataclass(frozen=True)
class InputColumns:
    """The columns of an input, and the paths to the fields nested in them, as far as they are known."""

    names: frozenset[str]
    paths: frozenset[str]  # includes the names
    open_ended: bool = False  # rows that were not read may have more

    def below(self, path: str) -> set[str]:
        """The fields of the objects at a path."""
        begin = f"{path}."
        return {p[len(begin) :].split(".")[0].split("[")[0] for p in self.paths if p.startswith(begin)}

    def without(self, names: Iterable[str]) -> "InputColumns":
        """The other columns, with the fields nested in them."""
        rest = self.names.difference(names)
        begins = tuple(f"{name}{mark}" for name in self.names - rest for mark in ".[")
        paths = frozenset(p for p in self.paths if p in rest or not (p in self.names or p.startswith(begins)))
        return InputColumns(rest, paths, self.open_ended)


def of_names(names: Iterable[str]) -> InputColumns:
    """Columns of which only the names are known."""
    unique = frozenset(names)
    return InputColumns(unique, unique)


def of_schema(schema: pa.Schema) -> InputColumns:
    """The columns and nested fields of an Arrow schema."""
    paths: set[str] = set()
    for field in schema:
        _of_type(field.name, field.type, paths, _DEPTH)
    return InputColumns(frozenset(schema.names), frozenset(paths))


def _of_type(path: str, kind: pa.DataType, paths: set[str], depth: int) -> None:
    paths.add(path)
    if depth and pa.types.is_struct(kind):
        for i in range(kind.num_fields):
            _of_type(f"{path}.{kind.field(i).name}", kind.field(i).type, paths, depth - 1)
    elif depth and isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        _of_type(f"{path}[]", kind.value_type, paths, depth - 1)


def of_rows(rows: Iterable[Mapping[str, Any]]) -> InputColumns:
    """The columns and nested fields of sampled rows; other rows may have more."""
    names: set[str] = set()
    paths: set[str] = set()
    for row in rows:
        names.update(row)
        for name, value in row.items():
            _of_value(name, value, paths, _DEPTH)
    return InputColumns(frozenset(names), frozenset(paths), open_ended=True)


def _of_value(path: str, value: Any, paths: set[str], depth: int) -> None:
    paths.add(path)
    if depth and isinstance(value, dict):
        for name, entry in value.items():
            _of_value(f"{path}.{name}", entry, paths, depth - 1)
    elif depth and isinstance(value, list):
        paths.add(f"{path}[]")
        for entry in value[:_ELEMENTS]:
            _of_value(f"{path}[]", entry, paths, depth - 1)


def joined(inputs: Iterable[InputColumns]) -> InputColumns:
    """The columns of all inputs together."""
    inputs = list(inputs)
    return InputColumns(
        frozenset().union(*(columns.names for columns in inputs)),
        frozenset().union(*(columns.paths for columns in inputs)),
        any(columns.open_ended for columns in inputs),
    )


def is_empty(value: Any) -> bool:
    """Whether a value has no text that could belong to a conversation; numbers do not count as text."""
    if value is None:
        return True
    if isinstance(value, str):
        return value.strip() in _EMPTY_TEXTS
    if isinstance(value, bytes):
        return not value
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_empty, value))
    if hasattr(value, "tolist"):
        return is_empty(value.tolist())
    return isinstance(value, bool | int | float)
