"""Where the parts of a conversation lie in a row: what stands before the answers, and the answers with their roles."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from armo_ray.text.layouts import Layout


class Rejected(Exception):  # noqa: N818 - a verdict on data, not an error
    """A candidate cannot be scored; args are (reason, detail)."""


class Parts(NamedTuple):
    """The parts of a row as they are written there: text, messages or null."""

    answers: list[tuple[str, Any]]  # role (chosen, rejected or response) and answer, in their order
    prompt: Any = None
    system: Any = None
    tools: Any = None  # that the model may call: a list of their schemas, or its JSON
    flags: tuple[str, ...] = ()  # of every candidate of the row


def parts_of(row: Mapping[str, Any], layout: Layout) -> Parts:
    """The parts of a row. Raises Rejected where it is not of the layout."""
    values = {part: row.get(column) for part, column in layout.columns.items()}
    absent = [
        name for part, name in layout.columns.items() if part not in ("system", "tools") and name not in row
    ]
    if absent:
        has = ", ".join(sorted(row)) or "no columns"
        detail = f"no column {', '.join(absent)}; the row has {has}"
        raise Rejected("malformed_row", detail.encode("utf-8", "backslashreplace").decode())
    answers = [(role, value) for role, part in _ANSWERS[layout.kind](values) for value in part]
    return Parts(answers, values.get("prompt"), values.get("system"), values.get("tools"))


def _preference(values: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    return [(role, _several(values[role])) for role in ("chosen", "rejected")]


def _rollouts(values: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    if "response" in values:
        return [("response", [values["response"]])]
    responses = values["responses"]
    if not isinstance(responses, list):
        raise Rejected("malformed_row", f"responses is {kind_of(responses)}, expected a list")
    if not responses:
        raise Rejected("empty_response", "the list of responses is empty")
    return [("response", responses)]


def _messages(values: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    if not isinstance(values["messages"], list):
        raise Rejected("malformed_row", f"messages is {kind_of(values['messages'])}, expected a list")
    return [("response", [values["messages"]])]


_ANSWERS: dict[str, Callable[[Mapping[str, Any]], list[tuple[str, list[Any]]]]] = {
    "preference": _preference,
    "rollouts": _rollouts,
    "messages": _messages,
}


def _several(value: Any) -> list[Any]:
    """One answer, or the answers of a list; a list of messages is one conversation."""
    return value if isinstance(value, list) and value and not isinstance(value[0], dict) else [value]


def kind_of(value: Any) -> str:
    """What a value is, for people."""
    return "null" if value is None else type(value).__name__
