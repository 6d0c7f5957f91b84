"""The protocol for one workload: each contender warms up, then all take turns in rounds of alternating order."""

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from armo_ray.bench import baselines, flops, measure
from armo_ray.bench.contenders import Contender
from armo_ray.bench.workloads import Group, sequences_of
from armo_ray.engine import RewardModel, Scores
from armo_ray.measures.agreement import pairs_of

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass
class Record:
    """The measurements of one contender on one workload."""

    name: str
    error: str | None = None  # the reason if it failed
    seconds: list[float] = field(default_factory=list)  # one per round
    facts: dict[str, Any] = field(default_factory=dict)  # measurements of the warm-up


def take_turns(
    contenders: dict[str, Contender | str],
    model: RewardModel,
    groups: Sequence[Group],
    rounds: int,
    seed: int,
) -> tuple[list[Record], list[float]]:
    """Measure all contenders.

    Args:
        contenders: by name; a contender that could not be prepared is given as the reason.
        groups: the workload.
        rounds: the number of timed passes per contender.
        seed: for the shuffled order of prompts in which fixed packs must give the same bits.

    Returns:
        A record for every contender, in their order, and the FLOP/s of a dense matrix product before each round.
    """
    expected, error = attempt(lambda: baselines.reference(model, groups))
    release()
    logger.info("  float32 reference: %s", error or "done")
    records = {name: Record(name, c if isinstance(c, str) else None) for name, c in contenders.items()}
    prepared = {name: c for name, c in contenders.items() if isinstance(c, Contender)}
    for name, contender in prepared.items():
        record = records[name]
        facts, record.error = attempt(partial(_warm_up, contender, model, groups, expected, seed))
        record.facts = facts or {}
        logger.info("  %s, warm-up: %s", name, record.error or "done")
    rates = []
    for turn in range(rounds):
        rates.append(measure.matmul_flops(model.backbone.dtype, model.device))
        for name in list(prepared)[:: -1 if turn % 2 else 1]:
            if records[name].error is None:
                score = partial(prepared[name].score, groups)
                timed, records[name].error = attempt(partial(measure.timed, score, model.device))
                records[name].seconds += [timed[1]] if timed else []
                outcome = records[name].error or f"{records[name].seconds[-1]:.2f} s"
                logger.info("  %s, round %d of %d: %s", name, turn + 1, rounds, outcome)
    return list(records.values()), rates


def attempt(function: Callable[[], T]) -> tuple[T | None, str | None]:
    """The result of a function, or the reason why it failed, so that a contender's failure does not stop the others."""
    try:
        return function(), None
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
    release()
    return None, reason


def release() -> None:
    """Free the memory of unused objects and of torch's CUDA cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def errors(scores: Scores, expected: Scores, groups: Sequence[Group]) -> dict[str, Any]:
    """Score errors in standard deviations of the scores, the relative error of the rewards, and flipped pairs."""
    i, j = pairs_of(np.repeat(np.arange(len(groups)), [len(responses) for _, responses in groups]))
    before, after = (s.score[i] - s.score[j] for s in (expected, scores))
    score_errors = np.abs(scores.score - expected.score) / (expected.score.std() or 1.0)
    rewards_error = np.linalg.norm(scores.rewards - expected.rewards) / np.linalg.norm(expected.rewards)
    return {
        "max_score_error": float(score_errors.max()),
        "mean_score_error": float(score_errors.mean()),
        "rewards_error": float(rewards_error),
        "flips": int((before * after < 0).sum()),
        "pairs": len(i),
    }


def _warm_up(
    contender: Contender,
    model: RewardModel,
    groups: Sequence[Group],
    expected: Scores | None,
    seed: int,
) -> dict[str, Any]:
    """Score once, which may compile, and measure everything except the seconds."""
    scores, peak = measure.with_peak(lambda: contender.score(groups), model.device)
    facts: dict[str, Any] = {"computed_tokens": scores.computed_tokens, "forwards": scores.num_packs}
    facts["peak_bytes"] = peak
    facts |= _work(contender, model, groups, scores)
    if expected is not None:
        facts |= errors(scores, expected, groups)
    if contender.packs and contender.packs.options.fixed_packs:
        facts["same_bits"] = _same_bits_in_any_order(contender, groups, scores, seed)
    return facts


def _same_bits_in_any_order(contender: Contender, groups: Sequence[Group], scores: Scores, seed: int) -> bool:
    order = np.random.default_rng(seed).permutation(len(groups))
    counts = [len(responses) for _, responses in groups]
    places = np.split(np.arange(len(scores.score)), np.cumsum(counts)[:-1])
    shuffled = contender.score([groups[i] for i in order])
    return np.array_equal(shuffled.score, scores.score[np.concatenate([places[i] for i in order])])


def _work(
    contender: Contender, model: RewardModel, groups: Sequence[Group], scores: Scores
) -> dict[str, Any]:
    """Tokens and operations that the contender must compute, and the token capacity of its forward passes."""
    sequences, shape = sequences_of(groups), flops.shape_of(model.backbone)
    if contender.packs is None:
        work, slots = flops.whole(shape, sequences), scores.computed_tokens
    else:
        options = contender.packs.options
        reads = [model.head.positions(ids) for ids in sequences]
        work = flops.packed(
            shape, sequences, reads, options.token_budget, options.share_prompts, options.needed_rows
        )
        slots = max(scores.num_packs * options.token_budget, scores.computed_tokens)
    return {"needed_tokens": work.tokens, "flops": work.flops, "slots": slots}
