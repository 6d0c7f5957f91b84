"""What a row says, by column role: the prompt and its context, and the responses with their candidate roles."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from armo_ray.text.input_columns import COLUMN_ROLE_OF, is_empty
from armo_ray.text.layouts import Layout
from armo_ray.text.paths import Rejected, decoded, kind_of, value_at
from armo_ray.text.row_shapes import SHAPES, message

Responses = list[tuple[str, Any]]  # candidate role (chosen, rejected or response) and response, in row order


class RowContent(NamedTuple):
    """The content of a row as it is written there: text, messages or null."""

    responses: Responses
    prompt: Any = None
    system: Any = None
    tools: Any = None  # the tools that the model may call: a list of their schemas, or JSON of that list
    flags: tuple[str, ...] = ()  # for every candidate of the row
    places: tuple[
        int, ...
    ] = ()  # of the responses in the order in which the row holds them; empty: the same order


def content_of(row: Mapping[str, Any], layout: Layout) -> RowContent:
    """The content of a row. Raises Rejected if the row does not fit the layout."""
    if not layout.watched.isdisjoint(row):
        _check_unread(row, layout)
    if not layout.needed <= row.keys():
        _check_present(row, layout)
    values = {
        role: _as_text(row[path] if path in row else value_at(row, path))
        for role, path in layout.columns.items()
    }
    if layout.shape is not None:
        values = SHAPES[layout.shape](values)
    content = _RESPONSES[layout.kind](values, layout)
    if "prefix" in values:
        responses = [(role, _continued(values["prefix"], value)) for role, value in content.responses]
        content = content._replace(responses=responses)
    prompt, tools = values.get("prompt"), values.get("tools")
    if "input" in values or "history" in values:
        prompt = _prompt(values, layout)
    return content._replace(
        prompt=prompt, system=values.get("system"), tools=None if is_empty(tools) else tools
    )


def _as_text(value: Any) -> Any:
    """The value, or each value of a list, decoded if it is bytes: some writers of Parquet do not mark text as text."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise Rejected("malformed_row", f"not UTF-8 text: {error}") from None
    is_list = isinstance(value, list) and value and isinstance(value[0], bytes)
    return [_as_text(entry) for entry in value] if is_list else value


def _check_unread(row: Mapping[str, Any], layout: Layout) -> None:
    """Reject a row that has conversation content in a column that the layout does not read."""
    for name in layout.watched.intersection(row):
        if not is_empty(row[name]):
            raise Rejected("unread_column", f"{name}: {how_to_read(name)}")


def how_to_read(name: str) -> str:
    """Advice for an unread column that may hold conversation content."""
    role, name = COLUMN_ROLE_OF[name], shlex.quote(name)
    read = (
        f"read it with --column {role}={name}, or " if role else "it cannot be read into the conversation; "
    )
    return f"it may be part of the conversation: {read}set it aside with --ignore {name}"


def _check_present(row: Mapping[str, Any], layout: Layout) -> None:
    if absent := layout.lacking(row):
        names = ", ".join(sorted(row)) or "no columns"
        detail = f"no column {', '.join(absent)}; the row has {names}"
        raise Rejected("malformed_row", detail.encode("utf-8", "backslashreplace").decode())


def _preference(values: Mapping[str, Any], _: Layout) -> RowContent:
    if "tied" in values:
        return RowContent([("response", response) for response in values["tied"]], flags=("tie",))
    roles = ("chosen", "rejected")
    responses = [(role, response) for role in roles for response in _several(values[role])]
    places = values.get("places", ())
    return RowContent(responses, places=places if len(places) == len(responses) else ())


def _rollouts(values: Mapping[str, Any], layout: Layout) -> RowContent:
    if "response" in values:
        return RowContent([("response", values["response"])])
    if "steps" in values:
        steps = _of_steps(values["steps"], layout.step_end)
        return RowContent([("response", response) for response in steps])
    responses = values["responses"]
    if not isinstance(responses, list):
        raise Rejected("malformed_row", f"responses is {kind_of(responses)}, expected a list")
    if not responses:
        raise Rejected("empty_response", "the list of responses is empty")
    return RowContent([("response", response) for response in responses])


def _of_steps(value: Any, step_end: str) -> list[str]:
    """One or several responses, each joined from its steps with the mark that the model expects after a step."""
    if not isinstance(value, list) or not value:
        raise Rejected("malformed_row", f"steps is {'an empty list' if value == [] else kind_of(value)}")
    responses = value if isinstance(value[0], list) else [value]
    return [step_end.join(_step(step, step_end.strip(), step_end) for step in steps) for steps in responses]


def _step(step: Any, mark: str, step_end: str) -> str:
    if not isinstance(step, str):
        raise Rejected("malformed_row", f"a step is {kind_of(step)}, expected text")
    text = step.strip().removesuffix(mark).strip()
    if not text:
        raise Rejected("empty_response", "a step is empty")
    if step_end.lstrip(" ") in text:
        raise Rejected("malformed_row", f"a step contains {step_end!r}, which marks the end of a step")
    return text


def _messages(values: Mapping[str, Any], _: Layout) -> RowContent:
    messages = values["messages"]
    if isinstance(messages, str):
        messages = decoded(messages, "messages")
    if not isinstance(messages, list):
        raise Rejected("malformed_row", f"messages is {kind_of(messages)}, expected a list")
    if _is_verdict(messages[-1:]) and all(_is_verdict([turn]) for turn in messages[1::2]):
        raise Rejected(
            "malformed_row",
            "every assistant turn is only + or -: these are rated steps; read them with --layout rlhflow-prm",
        )
    return RowContent([("response", messages)])


def _is_verdict(turns: Sequence[Any]) -> bool:
    """Whether one of the turns is a verdict on a step, as in the data of RLHFlow's process models."""
    return any(
        isinstance(turn, dict) and turn.get("content", turn.get("value")) in ("+", "-") for turn in turns
    )


_ROLES = {
    "first": ("chosen", "rejected"),
    "second": ("rejected", "chosen"),
    "tie": ("response", "response"),
}


def _pairs(values: Mapping[str, Any], layout: Layout) -> RowContent:
    verdict = _verdict(values, layout)
    if verdict == "skip":
        raise Rejected("skipped", f"winner {_key(values['winner'])!r} is set aside with --winner")
    responses = list(zip(_ROLES[verdict], (values["first"], values["second"]), strict=True))
    flags = ("tie",) if verdict == "tie" else ()
    places = (1, 0) if verdict == "second" else (0, 1)  # chosen before rejected
    return RowContent([responses[place] for place in places], flags=flags, places=places)


def _verdict(values: Mapping[str, Any], layout: Layout) -> str:
    """Which response is preferred: first, second, tie or skip."""
    if "winner" in values:
        key = _key(values["winner"])
        if key not in layout.winner_values:
            expected = ", ".join(layout.winner_values)
            raise Rejected(
                "malformed_row",
                f"winner {key!r} is none of {expected}: say what it means with --winner {key}=first|second|tie|skip",
            )
        return layout.winner_values[key]
    first, second = (_rating(values[role], role) for role in ("first_rating", "second_rating"))
    return "first" if first > second else "second" if second > first else "tie"


def _key(value: Any) -> str:
    """A value of the column winner, spelled as in --winner."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _rating(value: Any, role: str) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) else float("nan")
    except ValueError:
        number = float("nan")
    if number != number:
        raise Rejected("malformed_row", f"{role} is {value!r:.50}, expected a number")
    return number


_RESPONSES: dict[str, Callable[[Mapping[str, Any], Layout], RowContent]] = {
    "preference": _preference,
    "rollouts": _rollouts,
    "messages": _messages,
    "pairs": _pairs,
}


def _several(value: Any) -> list[Any]:
    """The responses in a column: each entry of a list, but a list of messages is a single conversation."""
    return value if isinstance(value, list) and value and not isinstance(value[0], dict) else [value]


def _continued(prefix: Any, response: Any) -> Any:
    """A response with the text that it continues put before it."""
    if is_empty(prefix):
        return response
    if not isinstance(prefix, str) or not isinstance(response, str):
        raise Rejected(
            "malformed_row",
            f"prefix is {kind_of(prefix)} and a response is {kind_of(response)}, expected text for both",
        )
    return prefix + response


def _prompt(values: Mapping[str, Any], layout: Layout) -> Any:
    """The prompt, joined with the input column and preceded by the history."""
    prompt, more, history = values.get("prompt"), values.get("input"), values.get("history")
    if not is_empty(more):
        if not isinstance(more, str) or not isinstance(prompt, str | None):
            raise Rejected(
                "malformed_row",
                f"input is {kind_of(more)} and prompt is {kind_of(prompt)}: only text can be joined",
            )
        prompt = layout.joint.join(text for text in (prompt, more) if text)
    if is_empty(history):
        return prompt
    turns = _history(history)
    if prompt is None:
        return turns
    return turns + (prompt if isinstance(prompt, list) else [message("user", prompt)])


def _history(history: Any) -> list[Any]:
    """The turns before the prompt, given as messages or as pairs of a user's and an assistant's text."""
    if isinstance(history, str):
        history = decoded(history, "history")
    if not isinstance(history, list):
        raise Rejected("malformed_row", f"history is {kind_of(history)}, expected a list")
    turns: list[Any] = []
    for entry in history:
        if isinstance(entry, dict):
            turns.append(entry)
        elif isinstance(entry, list | tuple) and len(entry) == 2:
            turns += [message("user", entry[0]), message("assistant", entry[1])]
        else:
            raise Rejected("malformed_row", "history holds neither messages nor pairs of question and answer")
    return turns
