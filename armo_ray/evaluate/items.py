"""Labelled rows: responses that are known to be correct or preferred, and responses that are not."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from armo_ray.errors import ConfigError
from armo_ray.evaluate.judged import Verdicts

Floats = npt.NDArray[np.floating[Any]]
Index = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Pairs(NamedTuple):
    """Every correct response of an item paired with every wrong one, (P,) each."""

    correct: Index  # indices of candidates
    wrong: Index
    item: Index


@dataclass(frozen=True)
class Items:
    """Candidates (C,) of items (G,), ordered by item.

    Candidates that could not be scored have the value NaN, which every rule counts as wrong.
    """

    names: tuple[str, ...]  # V columns: score, then the rewards
    values: Floats  # (C, V)
    tokens: Floats  # (C,) tokens of the response; NaN if it was not scored
    item: Index  # (C,) index of the candidate's item, ascending
    correct: Flags  # (C,)
    columns: Mapping[str, tuple[Any, ...]]  # (G,) each: subset, id, ...
    where: tuple[str, ...]  # (G,) shard and row
    ties: int = 0  # rows without a preferred response, which are not among the items
    verdicts: Verdicts | None = None  # of a judge

    def __len__(self) -> int:
        return len(self.where)

    @cached_property
    def starts(self) -> Index:
        """Index of the first candidate of each item, (G,)."""
        return np.searchsorted(self.item, np.arange(len(self)))

    @cached_property
    def counts(self) -> Index:
        """Numbers of correct and of wrong responses of each item, (G, 2)."""
        correct = np.bincount(self.item[self.correct], minlength=len(self))
        return np.stack((correct, np.bincount(self.item, minlength=len(self)) - correct), axis=1)

    @cached_property
    def pairs(self) -> Pairs:
        correct, wrong = np.flatnonzero(self.correct), np.flatnonzero(~self.correct)
        first_wrong = np.searchsorted(self.item[wrong], np.arange(len(self)))
        times = self.counts[self.item[correct], 1]  # a correct response has a pair with every wrong one
        first = np.repeat(correct, times)
        nth = np.arange(len(first)) - np.repeat(np.cumsum(times) - times, times)
        return Pairs(first, wrong[first_wrong[self.item[first]] + nth], self.item[first])

    @cached_property
    def unscored(self) -> Flags:
        """Whether an item has a candidate without a score, (G,)."""
        return np.isin(np.arange(len(self)), self.item[np.isnan(self.values[:, 0])])

    @cached_property
    def unjudged(self) -> Flags:
        """Whether an item has a candidate without a verdict of the judge, (G,)."""
        without = self.item[self.verdicts.without] if self.verdicts else ()
        return np.isin(np.arange(len(self)), without)

    @property
    def has_lengths(self) -> bool:
        """Whether tokens were counted, which a judge does not do."""
        return not np.isnan(self.tokens).all()

    def compared(self, values: Floats) -> Floats:
        """What every pair counts: 1 if the correct response has the larger value, for a judge as its verdicts say."""
        first, second = values[self.pairs.correct], values[self.pairs.wrong]
        if self.verdicts is None:
            return np.asarray(first > second, np.float64)
        counting, without = self.verdicts.counting, self.verdicts.without
        counted = np.where(first == second, counting.tie, (first > second).astype(np.float64))
        counted[without[self.pairs.correct] | without[self.pairs.wrong]] = counting.error
        won = self._won()
        return np.asarray(np.where(np.isnan(won), counted, won), np.float64)

    def _won(self) -> Floats:
        """What the correct response of every pair won in its contests with the wrong one, (P,); NaN without any."""
        if self.verdicts is None or not self.verdicts.contests:
            return np.full(len(self.pairs.item), np.nan)
        places = zip(*(part.tolist() for part in self.pairs), strict=True)
        return np.array([self.verdicts.won(self.where[item], own, other) for own, other, item in places])

    def comparable(self) -> "Items":
        """Only the items that have both a correct and a wrong response."""
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
            verdicts=self.verdicts and self.verdicts.of(own),
        )

    def texts(self, column: str) -> list[str]:
        """A column of the items as strings, (G,). Raises ConfigError if a value is null."""
        values = self.columns[column]
        for value, where in zip(values, self.where, strict=True):
            if value is None:
                raise ConfigError(f"{where}: {column} is null")
        return [str(value) for value in values]

    def check(self, kind: str, allowed: Callable[[int, int], bool], expected: str) -> None:
        """Raises ConfigError if the numbers of correct and wrong responses of an item are not `allowed`."""
        for (correct, wrong), where in zip(self.counts.tolist(), self.where, strict=True):
            if not allowed(correct, wrong):
                raise ConfigError(
                    f"{where}: {correct} chosen and {wrong} rejected responses; {kind} has {expected}"
                )


def check_names(names: Iterable[str], allowed: Iterable[str], what: str) -> None:
    """Raises ConfigError that lists the names not among `allowed`; `what` says what they name, such as subset."""
    if unknown := sorted(set(names) - set(allowed)):
        raise ConfigError(
            f"not a {what} of this benchmark: {', '.join(unknown[:5])}; expected {', '.join(allowed)}"
        )
