"""Paths into rows: `question.full_text`, `completions[].response`, `score[0]`.

A path begins with a column. `.name` is a field of an object, `[]` stands for all elements of a list, and `[N]` for
the element N, counted from 0. Text on the way is decoded as JSON. A column whose name is the whole path takes
precedence.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from armo_ray.storage.json_files import unique_keys

_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d*)\]")
_ROOT = re.compile(r"[^.\[\]]+")
ALL = "[]"


class Rejected(Exception):  # noqa: N818 - a finding about data, not an error
    """A candidate cannot be scored; args are (reason, detail)."""


def kind_of(value: Any) -> str:
    """The type of a value, for messages."""
    return "null" if value is None else type(value).__name__


def root_of(path: str) -> str:
    """The column that a path begins with; the whole text if it is not a path."""
    return path if steps_of(path) is None else _ROOT.match(path)[0]  # type: ignore[index]


@cache
def steps_of(path: str) -> tuple[str | int, ...] | None:
    """What follows the column in a path: field names, list indices and ALL. None if the text is a column name only."""
    root = _ROOT.match(path)
    if root is None or root.end() == len(path):
        return None
    steps: list[str | int] = []
    at = root.end()
    while at < len(path):
        if (step := _STEP.match(path, at)) is None:
            return None
        steps.append(step[1] if step[1] is not None else int(step[2]) if step[2] else ALL)
        at = step.end()
    return tuple(steps)


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """The value at a path; None if a field or element on the way is absent. Raises Rejected on an unexpected type."""
    if path in row:
        return row[path]
    steps = steps_of(path)
    return None if steps is None else _follow(row.get(root_of(path)), steps, path)


def _follow(value: Any, steps: tuple[str | int, ...], path: str) -> Any:
    for k, step in enumerate(steps):
        if isinstance(value, str):
            value = decoded(value, path)
        if value is None:
            return None
        if step == ALL and isinstance(value, list):
            return [_follow(element, steps[k + 1 :], path) for element in value]
        if isinstance(step, int) and isinstance(value, list):
            value = value[step] if step < len(value) else None
        elif step != ALL and isinstance(value, dict):
            value = value.get(step)
        else:
            expected = "a list" if step == ALL or isinstance(step, int) else f"an object with {step}"
            raise Rejected("malformed_row", f"{path}: found {kind_of(value)}, expected {expected}")
    return value


def decoded(text: str, what: str) -> Any:
    """The text parsed as JSON. Raises Rejected if it is not JSON; `what` names it in the message."""
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise Rejected("malformed_row", f"{what}: the text is not JSON: {error}") from None
