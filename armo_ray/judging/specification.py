"""What a judge is: its messages, the rule that reads a verdict, and how verdicts become a score."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from armo_ray.judging.template import Template

Unit = Literal["one", "pair", "list"]
Orders = Literal["both", "hash", "given"]
Aggregate = Literal["mean", "majority", "sum"]
Kind = Literal["choice", "number", "numbers", "json", "tokens"]  # of a judge file
Where = Literal["only", "last", "first", "priority"]

EMPTY = Template(())
PAIR_VALUES = {
    "first": 1.0,
    "tie": 0.5,
    "second": 0.0,
}  # what a verdict is worth for the response shown first
LETTERS = "abcdefghijklmnopqrstuvwxyz"
THOUGHT_END = "</think>"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a request; `role` is free, and `conversation` stands for the messages of the prompt."""

    role: str
    template: Template


@dataclass(frozen=True, slots=True)
class Parse:
    """How a verdict is read.

    values: what a text or token means: 1, 0.5 or 0 for the response shown first (pair), the place of the winner from 0
        (list), or a number (one). Empty if numbers are read.
    where: which of several verdicts counts: `only` refuses two different ones, `priority` takes the first in `values`.
    tie_break, middle: name of a JSON number that decides between equal scores: below the middle the first is better.
    within: a JSON object of this name is read instead of the whole, if there is one.
    """

    kind: Kind | Literal["values"]  # values: numbers that a server of reward models returns
    pattern: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    where: Where = "only"
    tail: int = 0
    tie_break: str = ""
    middle: float = 0.0
    within: str = ""


@dataclass(frozen=True)
class Judge:
    """A judge file, checked. `fingerprint` tells judges apart that can answer or be read differently."""

    name: str
    unit: Unit
    messages: tuple[Message, ...]
    parse: Parse
    scale: tuple[float, float] | None = None
    orders: Orders = "both"
    samples: int = 1
    aggregate: Aggregate = "mean"
    strip: Literal["think", "none"] = "none"
    multi_turn: Literal["turns", "refuse"] = "turns"
    quorum: float = 1.0
    rubric: str | None = None  # None: the row's column `rubric`, if a message has {rubric}
    item: Template = field(default=EMPTY)  # one entry of {list}
    longest_list: int = 16
    sampling: Mapping[str, Any] = field(default_factory=dict)
    is_seeded: bool = True
    reward_names: tuple[str, ...] = ("rating",)
    weights: tuple[float, ...] = (1.0,)  # of the rewards in the score, in their order
    description: str = ""
    source: str = ""  # where the prompt was published
    license: str = ""  # of the prompt

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampling", MappingProxyType(dict(self.sampling)))

    def __reduce__(self) -> Any:  # read-only mappings cannot be pickled
        return _restored, (
            {name: getattr(self, name) for name in self.__dataclass_fields__}
            | {"sampling": dict(self.sampling)},
        )

    @cached_property
    def placeholders(self) -> frozenset[str]:
        return frozenset(name for message in self.messages for name in message.template.names)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns of a row that its messages show."""
        named = [
            name.removeprefix("column:") for name in sorted(self.placeholders) if name.startswith("column:")
        ]
        own = ["rubric"] if "rubric" in self.placeholders and self.rubric is None else []
        return tuple(dict.fromkeys([*named, *own]))

    @cached_property
    def size(self) -> int | None:
        """The number of responses in a list that is shown by {a}, {b}, ...; None if it is shown by {list}."""
        letters = [name for name in self.placeholders if name in LETTERS]
        return len(letters) or None if self.unit == "list" else None

    @cached_property
    def is_rating(self) -> bool:
        """Whether its values are numbers on a scale, not shares of wins."""
        return self.unit == "one" or (self.unit == "list" and not self.parse.values)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all that changes an answer or its reading."""
        silent = {"name", "description", "source", "license"}
        values = {
            name: _plain(getattr(self, name)) for name in self.__dataclass_fields__ if name not in silent
        }
        values["priority"] = list(self.parse.values) if self.parse.where == "priority" else []
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _restored(values: Mapping[str, Any]) -> Judge:
    return Judge(**values)


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value
