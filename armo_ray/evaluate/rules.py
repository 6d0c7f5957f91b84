"""The credit of an item under the rules of the benchmarks; the mean of credits is the accuracy of a subset.

Every rule takes one value per candidate, (C,): a score, a reward, or the length of the response.
"""

import numpy as np

from armo_ray.evaluate.items import Floats, Index, Items
from armo_ray.evaluate.judged import LOWEST


def pairwise(items: Items, values: Floats) -> Floats:
    """The fraction of an item's pairs whose correct response has a strictly larger value, (G,)."""
    pairs, wins = items.pairs, items.compared(values)
    won, count = (np.bincount(pairs.item, weight, len(items)) for weight in (wins, None))
    return np.asarray(won / np.maximum(count, 1), np.float64)


def best_of(items: Items, values: Floats) -> Floats:
    """1 if the only correct response has the largest value, shared equally with ties, (G,). (RewardBench 2)

    Responses about which a judge gave no verdict are left out; an item without any verdict is an error.
    """
    if items.verdicts is not None:
        values = np.where(items.verdicts.without, -np.inf, values)
    most = np.maximum.reduceat(values, items.starts)
    best = values == most[items.item]
    number = np.bincount(items.item[best], minlength=len(items))
    correct = np.bincount(items.item[best & items.correct], minlength=len(items))
    credit = np.where(correct > 0, 1 / np.maximum(number, 1), 0.0)
    if items.verdicts is not None:
        credit[most == -np.inf] = items.verdicts.counting.error
    return np.asarray(credit, np.float64)


def matrix(items: Items, values: Floats) -> Floats:
    """What correct response i counts against wrong response j, (G, 3, 3), for three of each."""
    return items.compared(values).reshape(-1, 3, 3)


def easy_normal_hard(items: Items, values: Floats) -> Floats:
    """Credits of an item in three styles, (G, 3). (RM-Bench)

    Responses are concise, detailed, and detailed with Markdown, in this order. Easy: the correct response is in the
    more elaborate style; normal: both are in the same style; hard: the wrong response is in the more elaborate style.
    """
    won = matrix(items, values)
    lower, diagonal, upper = np.tril_indices(3, -1), np.diag_indices(3), np.triu_indices(3, 1)
    return np.stack([won[:, i, j].mean(axis=1) for i, j in (lower, diagonal, upper)], axis=1)


def ties(items: Items, values: Floats, ref: Index, tied: Index) -> Floats:
    """Credits of prompts that exist with one and with several correct responses. (RewardBench 2)

    Args:
        ref: (N,) item of each prompt with one correct response.
        tied: (N,) item of the same prompt with several correct responses.

    Returns:
        (N,) 0.3 for each of the two items whose correct responses are all above all wrong ones; 0.2 if the margin
        between them in `tied` is larger than the spread of its correct responses, and 0.2 if the smaller margin of
        both items is; and 0.01 tanh(smaller margin / spread - 1).
    """
    if items.verdicts is not None:
        values = np.where(items.verdicts.without, LOWEST, values)
    lowest = np.minimum.reduceat(np.where(items.correct, values, np.inf), items.starts)
    highest = np.maximum.reduceat(np.where(items.correct, values, -np.inf), items.starts)
    highest_wrong = np.maximum.reduceat(np.where(items.correct, -np.inf, values), items.starts)
    with np.errstate(divide="ignore", invalid="ignore"):
        margin, spread = lowest - highest_wrong, (highest - lowest)[tied]
        smaller = np.minimum(margin[ref], margin[tied])
        bonus = np.nan_to_num(np.tanh(smaller / spread - 1), nan=0.0)
    return np.asarray(
        0.3 * (margin[tied] > 0)
        + 0.3 * (margin[ref] > 0)
        + 0.2 * (margin[tied] > spread)
        + 0.2 * (smaller > spread)
        + 0.01 * bonus,
        np.float64,
    )
