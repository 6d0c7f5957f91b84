"""Typed access to a table of a judge file; errors name the key, what is wrong, and what was expected."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Table:
    """A table of a TOML file. Every method raises ValueError with the table, the key and what to write instead."""

    def __init__(self, entries: Any, name: str, known: Sequence[str]) -> None:
        if not isinstance(entries, Mapping):
            raise ValueError(f"[{name}] is {entries!r:.60}: expected a table")
        self.entries, self.name = entries, name
        for key in entries:
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {close[0]}?" if close else f"expected {', '.join(known)}"
                raise ValueError(f"[{name}] {key}: unknown key; {hint}")

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def wrong(self, key: str, expected: str) -> ValueError:
        if key not in self.entries:
            return ValueError(f"[{self.name}] {key} is missing: expected {expected}")
        return ValueError(f"[{self.name}] {key} is {self.entries[key]!r:.100}: expected {expected}")

    def read(self, key: str, fits: Callable[[Any], bool], expected: str, default: Any = None) -> Any:
        """The value of a key; `default` if it is absent and there is one."""
        value = self.entries.get(key, default)
        if value is None or (key in self.entries and not fits(value)):
            raise self.wrong(key, expected)
        return value

    def text(self, key: str, default: str | None = None) -> str:
        return str(self.read(key, lambda x: isinstance(x, str) and x != "", "a text", default))

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.read(key, lambda x: isinstance(x, bool), "true or false", default))

    def whole(self, key: str, low: int, high: int, default: int) -> int:
        fits = lambda x: type(x) is int and low <= x <= high  # noqa: E731
        return int(self.read(key, fits, f"a whole number from {low} to {high}", default))

    def number(self, key: str, default: float | None = None) -> float:
        return float(self.read(key, is_number, "a number", default))

    def one_of(self, key: str, choices: Sequence[T], default: T | None = None) -> T:
        expected = f"one of {', '.join(map(str, choices))}"
        value: T = self.read(key, lambda x: x in choices, expected, default)
        return value

    def names(self, key: str) -> tuple[str, ...]:
        """A list of different texts; empty if the key is absent."""
        expected = "a list of different texts"

        def fits(x: Any) -> bool:
            return isinstance(x, list) and all(isinstance(n, str) and n for n in x) and len(set(x)) == len(x)

        return tuple(self.read(key, fits, expected, ()))

    def table(self, key: str, fits: Callable[[Any], bool], expected: str) -> dict[str, Any]:
        """A table of values that all fit; empty if the key is absent."""
        whole = lambda x: isinstance(x, Mapping) and all(map(fits, x.values()))  # noqa: E731
        return dict(self.read(key, whole, expected, {}))


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and not true or false."""
    return type(value) in (int, float) and math.isfinite(value)
