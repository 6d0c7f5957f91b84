"""What an item is worth under the rules of the benchmarks: credits, whose mean is the accuracy of a subset.

Every rule takes one value per candidate, (C,): a score, one reward, or the length of the answer.
"""

import numpy as np

from armo_ray.evaluate.items import Floats, Index, Items


def pairwise(items: Items, values: Floats) -> Floats:
    """The fraction of an item's pairs in which the correct answer has strictly more, (G,)."""
    pairs = items.pairs
    wins = (values[pairs.correct] > values[pairs.wrong]).astype(np.float64)
    won, count = (np.bincount(pairs.item, weight, len(items)) for weight in (wins, None))
    return np.asarray(won / np.maximum(count, 1), np.float64)


def best_of(items: Items, values: Floats) -> Floats:
    """1 where the one correct answer has the most, shared among all that have as much, (G,). (RewardBench 2)"""
    most = np.maximum.reduceat(values, items.starts)
    best = values == most[items.item]
    number = np.bincount(items.item[best], minlength=len(items))
    correct = np.bincount(items.item[best & items.correct], minlength=len(items))
    return np.asarray(np.where(correct > 0, 1 / np.maximum(number, 1), 0.0), np.float64)


def matrix(items: Items, values: Floats) -> Floats:
    """Whether correct answer i has strictly more than wrong answer j, of items with three each, (G, 3, 3)."""
    correct = values[items.correct].reshape(-1, 3, 1)
    return np.asarray(correct > values[~items.correct].reshape(-1, 1, 3), np.float64)


def easy_normal_hard(items: Items, values: Floats) -> Floats:
    """Three credits of an item, (G, 3): answers are concise, detailed, and detailed in Markdown. (RM-Bench)

    Hard: the wrong answer is the more elaborate one; normal: both are alike; easy: the correct answer is.
    """
    won = matrix(items, values)
    lower, diagonal, upper = np.tril_indices(3, -1), np.diag_indices(3), np.triu_indices(3, 1)
    return np.stack([won[:, i, j].mean(axis=1) for i, j in (lower, diagonal, upper)], axis=1)


def ties(items: Items, values: Floats, ref: Index, tied: Index) -> Floats:
    """Credits of prompts with one and with several correct answers. (RewardBench 2)

    Args:
        ref, tied: (N,) the items of each prompt with one correct answer, and with several.

    Returns:
        (N,) 0.3 each for all correct answers above all others, in both items; 0.2 for a margin to the others
        that is larger than the spread of the correct answers, and 0.2 for one that is so in both items; and
        0.01 tanh(margin / spread - 1).
    """
    lowest = np.minimum.reduceat(np.where(items.correct, values, np.inf), items.starts)
    highest = np.maximum.reduceat(np.where(items.correct, values, -np.inf), items.starts)
    others = np.maximum.reduceat(np.where(items.correct, -np.inf, values), items.starts)
    with np.errstate(divide="ignore", invalid="ignore"):
        margin, spread = lowest - others, (highest - lowest)[tied]
        least = np.minimum(margin[ref], margin[tied])
        more = np.nan_to_num(np.tanh(least / spread - 1), nan=0.0)
    return np.asarray(
        0.3 * (margin[tied] > 0)
        + 0.3 * (margin[ref] > 0)
        + 0.2 * (margin[tied] > spread)
        + 0.2 * (least > spread)
        + 0.01 * more,
        np.float64,
    )
