"""Layouts: which columns of a shard hold the conversations."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from armo_ray.text.input_columns import COLUMN_ROLE_OF
from armo_ray.text.messages import Reading
from armo_ray.text.paths import Rejected, root_of, value_at

# The column names that public data sets use for each column role; the first name is that of the role itself.
ALIASES = {
    "prompt": ("prompt", "instruction", "question", "query"),
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "responses": (
        "responses",
        "completions",
        "all_generated_responses",
        "generations",
        "candidates",
        "outputs",
        "answers",
    ),
    "response": ("response", "completion", "generation", "output", "answer"),
    "messages": ("messages", "conversation", "conversations"),
}
REQUIRED = {
    "preference": (("chosen", "rejected"),),
    "rollouts": (("prompt", "responses"), ("prompt", "response"), ("prompt", "steps")),
    "messages": (("messages",),),
    "pairs": (("first", "second", "winner"), ("first", "second", "first_rating", "second_rating")),
}
CONTEXT_ROLES = ("input", "history", "system", "tools", "prefix")  # a row may lack these
OPTIONAL = {
    "preference": ("prompt", *CONTEXT_ROLES),
    "rollouts": CONTEXT_ROLES,
    "messages": ("system", "tools"),
    "pairs": ("prompt", *CONTEXT_ROLES),
}
LABELLED = ("preference", "pairs")  # kinds whose rows say which response was chosen and which was rejected
RESPONSE_ROLES = ("chosen", "rejected", "responses", "response", "steps", "messages", "first", "second")
_OTHER_FIELDS = ("winner_values", "joint", "shape", "step_end", "ignored", "name")


def layout_and_reading(identity: Mapping[str, Any]) -> tuple["Layout", Reading]:
    """How a run of this identity reads rows and messages."""
    return Layout.of_record(identity["layout"]), Reading.of(identity)


@dataclass(frozen=True)
class Layout:
    """Which column of a row has which role, and how a conversation is built from them.

    kind: preference, rollouts, messages or pairs (two responses and which one is preferred).
    columns: maps a column role to a column, or to a path into one.
    winner_values: maps a value of the role `winner` to first, second, tie or skip.
    joint: text between the prompt and the input column.
    shape: name of a function in `text/row_shapes.py` that converts values that no path can reach.
    step_end: text that the model expects between the steps of a response.
    ignored: columns that the user or the named layout sets aside.
    name: name of a layout in `text/named_layouts.py`, or None.
    """

    kind: str
    columns: Mapping[str, str]
    winner_values: Mapping[str, str] = field(default_factory=dict)
    joint: str = "\n"
    shape: str | None = None
    step_end: str = ""
    ignored: tuple[str, ...] = ()
    name: str | None = None

    def record(self) -> dict[str, Any]:
        """The layout as JSON in `_run.json`, without fields that have their default; `of_record` reads it back."""
        default = Layout("", {})
        other = {
            name: getattr(self, name)
            for name in _OTHER_FIELDS
            if getattr(self, name) != getattr(default, name)
        }
        other |= {"ignored": list(self.ignored)} if self.ignored else {}
        return {"kind": self.kind, **self.columns, **other}

    @staticmethod
    def of_record(record: Mapping[str, Any]) -> "Layout":
        """The layout that `record` returned."""
        other = {name: record[name] for name in _OTHER_FIELDS if name in record}
        other |= {"ignored": tuple(record["ignored"])} if "ignored" in record else {}
        columns = {role: path for role, path in record.items() if role not in ("kind", *_OTHER_FIELDS)}
        return Layout(record["kind"], columns, **other)

    def count(self, row: Mapping[str, Any]) -> int:
        """The approximate number of candidates in a row, without parsing the row."""
        total = int("steps" in self.columns)  # counted as one response, whatever its steps
        for path, listed in self._counted:
            value = row[path] if path in row else _value(row, path)
            several = isinstance(value, list) and (listed or not value or not isinstance(value[0], dict))
            total += len(value) if several else 1
        return total

    @cached_property
    def _counted(self) -> tuple[tuple[str, bool], ...]:
        """The paths to responses, and whether each path leads to a list of responses in every row."""
        responses = ((role, self.columns[role]) for role in RESPONSE_ROLES if role in self.columns)
        return tuple((path, role == "responses") for role, path in responses if role != "steps")

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The columns to read: the first column of every path, and a column whose name is the whole path."""
        names = (name for path in self.columns.values() for name in (path, root_of(path)))
        return tuple(dict.fromkeys(names))

    @cached_property
    def candidate_columns(self) -> dict[str, bool]:
        """Maps each column with candidates to whether it holds a list of them in every row."""
        return {
            root_of(self.columns[role]): role == "responses" and self.columns[role].count("[") < 2
            for role in RESPONSE_ROLES
            if role in self.columns
        }

    @cached_property
    def needed(self) -> frozenset[str]:
        """The columns that every row must have, unless it has a column whose name is a whole path."""
        optional = OPTIONAL[self.kind]
        return frozenset(root_of(path) for role, path in self.columns.items() if role not in optional)

    def lacking(self, names: Container[str]) -> list[str]:
        """The needed columns that are not among `names`."""
        paths = (path for role, path in self.columns.items() if role not in OPTIONAL[self.kind])
        return list(dict.fromkeys(root_of(p) for p in paths if p not in names and root_of(p) not in names))

    @cached_property
    def watched(self) -> frozenset[str]:
        """Columns that may hold conversation content and are neither read nor set aside."""
        return frozenset(COLUMN_ROLE_OF) - {*self.sources, *self.ignored}

    @property
    def title(self) -> str:
        """The name of the layout with its kind, or the kind alone."""
        return self.kind if self.name is None else f"{self.name} ({self.kind})"


def _value(row: Mapping[str, Any], path: str) -> Any:
    try:
        return value_at(row, path)
    except Rejected:
        return None
