"""Labelled rows: answers that are known to be correct, or preferred, and answers that are not."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from armo_ray.errors import ConfigError

Floats = npt.NDArray[np.floating[Any]]
Index = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Pairs(NamedTuple):
    """Every correct answer of an item with every one that is not, (P,)."""

    correct: Index  # places of candidates
    wrong: Index
    item: Index


@dataclass(frozen=True)
class Items:
    """Candidates (C,) of items (G,), in the order of the items and of the candidates in each.

    What could not be scored is NaN: every rule here counts it as wrong.
    """

    names: tuple[str, ...]  # V columns: score, then the rewards
    values: Floats  # (C, V)
    tokens: Floats  # (C,) of the answers; NaN where it was not scored
    item: Index  # (C,) ascending
    correct: Flags  # (C,)
    columns: Mapping[str, tuple[Any, ...]]  # (G,) each: subset, id, ...
    where: tuple[str, ...]  # (G,) shard and row
    ties: int = 0  # rows of which no answer is preferred; they are no items

    def __len__(self) -> int:
        return len(self.where)

    @cached_property
    def starts(self) -> Index:
        """Where the candidates of each item begin, (G,)."""
        return np.searchsorted(self.item, np.arange(len(self)))

    @cached_property
    def counts(self) -> Index:
        """How many answers of each item are correct, and how many are not, (G, 2)."""
        correct = np.bincount(self.item[self.correct], minlength=len(self))
        return np.stack((correct, np.bincount(self.item, minlength=len(self)) - correct), axis=1)

    @cached_property
    def pairs(self) -> Pairs:
        correct, wrong = np.flatnonzero(self.correct), np.flatnonzero(~self.correct)
        first_wrong = np.searchsorted(self.item[wrong], np.arange(len(self)))
        times = self.counts[self.item[correct], 1]  # each correct answer, with all that are wrong
        first = np.repeat(correct, times)
        nth = np.arange(len(first)) - np.repeat(np.cumsum(times) - times, times)
        return Pairs(first, wrong[first_wrong[self.item[first]] + nth], self.item[first])

    @cached_property
    def unscored(self) -> Flags:
        """Items of which a candidate has no score, (G,)."""
        return np.isin(np.arange(len(self)), self.item[np.isnan(self.values[:, 0])])

    def comparable(self) -> "Items":
        """The items with a correct answer and one that is not."""
        whole = self.counts.min(axis=1) > 0
        own = whole[self.item]
        return replace(
            self,
            values=self.values[own],
            tokens=self.tokens[own],
            item=(np.cumsum(whole) - 1)[self.item[own]],
            correct=self.correct[own],
            columns={name: tuple(compress(column, whole)) for name, column in self.columns.items()},
            where=tuple(compress(self.where, whole)),
        )

    def texts(self, column: str) -> list[str]:
        """A column of the items; raises ConfigError where one is null."""
        values = self.columns[column]
        for value, where in zip(values, self.where, strict=True):
            if value is None:
                raise ConfigError(f"{where}: {column} is null")
        return [str(value) for value in values]

    def check(self, kind: str, allowed: Callable[[int, int], bool], expected: str) -> None:
        """Raises ConfigError where an item has other numbers of correct and other answers than a benchmark has."""
        for (correct, wrong), where in zip(self.counts.tolist(), self.where, strict=True):
            if not allowed(correct, wrong):
                raise ConfigError(
                    f"{where}: {correct} chosen and {wrong} rejected answers; {kind} has {expected}"
                )


def check_names(found: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raises ConfigError that names what a benchmark does not have."""
    if unknown := sorted(set(found) - set(known)):
        raise ConfigError(
            f"not a {what} of this benchmark: {', '.join(unknown[:5])}; expected {', '.join(known)}"
        )
