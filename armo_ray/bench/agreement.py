"""How far scores are from those of float32, one conversation at a time."""

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from armo_ray.bench import baselines
from armo_ray.bench.workloads import Group
from armo_ray.engine import RewardModel, Scores


def reference(model: RewardModel, groups: Sequence[Group]) -> Scores:
    """Scores in float32, one by one. The float32 copy of the weights is gone afterwards."""
    backbone = baselines.plain_backbone(model)
    if backbone.dtype != torch.float32:
        backbone = copy.deepcopy(backbone).float()
    return baselines.one_by_one(model, backbone, groups)


def agreement(found: Scores, expected: Scores, groups: Sequence[Group]) -> dict[str, Any]:
    """Errors of the scores, in units of their spread, and of the rewards; order flips between answers to a prompt."""
    pairs = list(_pairs(groups))
    flips = [
        (found.score[i] - found.score[j]) * (expected.score[i] - expected.score[j]) < 0 for i, j in pairs
    ]
    difference = np.linalg.norm(found.rewards - expected.rewards) / np.linalg.norm(expected.rewards)
    spread = float(expected.score.std()) or 1.0
    return {
        "max_score_error": float(np.abs(found.score - expected.score).max()) / spread,
        "mean_score_error": float(np.abs(found.score - expected.score).mean()) / spread,
        "rewards_error": float(difference),
        "flips": int(np.sum(flips)),
        "pairs": len(pairs),
    }


def same_bits_in_any_order(
    score: Callable[[Sequence[Group]], Scores], found: Scores, groups: Sequence[Group], seed: int
) -> bool:
    """Whether the groups in another order give the same bits."""
    order = np.random.default_rng(seed).permutation(len(groups))
    starts = np.cumsum([0, *(len(answers) for _, answers in groups)])
    places = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in order])
    shuffled = score([groups[i] for i in order])
    return np.array_equal(shuffled.score, found.score[places])


def _pairs(groups: Sequence[Group]) -> Iterator[tuple[int, int]]:
    at = 0
    for _, answers in groups:
        yield from combinations(range(at, at + len(answers)), 2)
        at += len(answers)
