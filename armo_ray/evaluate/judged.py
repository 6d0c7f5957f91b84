"""How benchmarks count what judges leave open: replies without a verdict, ties, and comparisons of two responses.

Authors show a pair in one order, which they draw; here it is shown in both, and the mean of the two is what the draw
gives on average.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from armo_ray.judging.reasons import REASONS

Floats = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]

NO_VERDICT = frozenset(REASONS)  # reasons of rejects that are errors of a judge, not of a row
LOWEST = -1.0  # rating of a response without a verdict among those that tie (RewardBench 2)


@dataclass(frozen=True)
class Counting:
    """What a comparison counts, of at most 1.

    tie: where the two responses are equal.
    error: where there is no verdict about one of them.
    source: whose rule that is; None if no benchmark has one.
    """

    tie: float
    error: float
    source: str | None


# by item, as "shard row N", candidate and opponent, numbered as in the row
Contests = Mapping[tuple[str, int, int], float]


@dataclass(frozen=True)
class Verdicts:
    """What a judge said of the candidates (C,) of items.

    without: whether there is no verdict about a candidate.
    numbers: of the candidates in their rows.
    contests: mean values of candidates in their contests with others; empty if they were rated.
    """

    without: Flags
    numbers: npt.NDArray[np.integer[Any]]
    contests: Contests
    counting: Counting

    def of(self, own: Flags) -> "Verdicts":
        """Only some of the candidates."""
        return replace(self, without=self.without[own], numbers=self.numbers[own])

    def won(self, where: str, own: int, other: int) -> float:
        """What a candidate won in its contests with another, by their places; NaN if they did not meet."""
        first, second = int(self.numbers[own]), int(self.numbers[other])
        if (value := self.contests.get((where, first, second))) is not None:
            return value
        return 1 - self.contests.get((where, second, first), np.nan)  # the other side of the same contest


_REWARDBENCH = Counting(0.5, 0.5, "RewardBench's script")
_COUNTINGS = {
    "rewardbench": _REWARDBENCH,
    "m-rewardbench": _REWARDBENCH,
    "rewardbench-2": Counting(0.5, 0.25, "RewardBench 2's script, where equal responses share the credit"),
    "rm-bench": Counting(0.5, 0.0, "RM-R1's script for RM-Bench"),
    "llmbar": Counting(0.5, 0.0, "LLMBar's script for comparisons"),
    "labelled": Counting(0.5, 0.0, None),
}
_RM_R1 = Counting(0.5, 0.0, "RM-R1's script for RewardBench")
_LLMBAR_RATINGS = Counting(0.5, 0.5, "LLMBar's script for ratings")


def counting_of(benchmark: str, metadata: Mapping[str, Any], compares: bool) -> Counting | None:
    """How a benchmark counts the scores of a judge, which `compares` or rates; None for the scores of other models."""
    if metadata.get("model_family") != "judge" or metadata.get("ensemble"):
        return None
    if str(metadata.get("judge")).startswith("rm-r1") and benchmark in ("rewardbench", "m-rewardbench"):
        return _RM_R1
    if benchmark == "llmbar" and not compares:
        return _LLMBAR_RATINGS
    return _COUNTINGS.get(benchmark, _COUNTINGS["labelled"])
