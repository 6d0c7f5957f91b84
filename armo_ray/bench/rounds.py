"""Contenders take turns on one workload: a warm-up each, then rounds in alternating order."""

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
    """What was seen of one contender on one workload; `error` says why there is no more."""

    name: str
    error: str | None = None
    seconds: list[float] = field(default_factory=list)  # one a round
    facts: dict[str, Any] = field(default_factory=dict)


def take_turns(
    contenders: dict[str, Contender | str],
    model: RewardModel,
    groups: Sequence[Group],
    rounds: int,
    seed: int,
) -> tuple[list[Record], list[float]]:
    """A record of every contender, in their order, and the FLOP/s of a dense matrix product before each round.

    A contender that could not be prepared comes as the reason, a text.
    """
    expected, error = attempt(lambda: baselines.reference(model, groups))
    release()
    logger.info("  float32 reference: %s", error or "done")
    records = {name: Record(name, c if isinstance(c, str) else None) for name, c in contenders.items()}
    able = {name: c for name, c in contenders.items() if isinstance(c, Contender)}
    for name, contender in able.items():
        record = records[name]
        facts, record.error = attempt(partial(_warm_up, contender, model, groups, expected, seed))
        record.facts = facts or {}
        logger.info("  %s, warm-up: %s", name, record.error or "done")
    rates = []
    for turn in range(rounds):
        rates.append(measure.matmul_flops(model.backbone.dtype, model.device))
        for name in list(able)[:: -1 if turn % 2 else 1]:
            if records[name].error is None:
                score = partial(able[name].score, groups)
                timed, records[name].error = attempt(partial(measure.timed, score, model.device))
                records[name].seconds += [timed[1]] if timed else []
                told = records[name].error or f"{records[name].seconds[-1]:.2f} s"
                logger.info("  %s, round %d of %d: %s", name, turn + 1, rounds, told)
    return list(records.values()), rates


def attempt(function: Callable[[], T]) -> tuple[T | None, str | None]:
    """What a function returns, or why it failed: one contender's failure is a result, and never the others'."""
    try:
        return function(), None
    except Exception as error:
        told = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {told[0] if told else ''}"[:200]
    release()
    return None, reason


def release() -> None:
    """Give back the memory of what is no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def errors(found: Scores, expected: Scores, groups: Sequence[Group]) -> dict[str, Any]:
    """Of the scores, in units of their spread, and of the rewards; pairs of answers to a prompt that change places."""
    i, j = pairs_of(np.repeat(np.arange(len(groups)), [len(answers) for _, answers in groups]))
    before, after = (s.score[i] - s.score[j] for s in (expected, found))
    score_errors = np.abs(found.score - expected.score) / (expected.score.std() or 1.0)
    rewards_error = np.linalg.norm(found.rewards - expected.rewards) / np.linalg.norm(expected.rewards)
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
    """Score once, which may compile, and tell all that is to be known besides the seconds."""
    found, peak = measure.with_peak(lambda: contender.score(groups), model.device)
    facts: dict[str, Any] = {"computed_tokens": found.computed_tokens, "forwards": found.num_packs}
    facts["peak_bytes"] = peak
    facts |= _work(contender, model, groups, found)
    if expected is not None:
        facts |= errors(found, expected, groups)
    if contender.packs and contender.packs.options.fixed_packs:
        facts["same_bits"] = _same_bits_in_any_order(contender, groups, found, seed)
    return facts


def _same_bits_in_any_order(contender: Contender, groups: Sequence[Group], found: Scores, seed: int) -> bool:
    order = np.random.default_rng(seed).permutation(len(groups))
    places = np.split(np.arange(len(found.score)), np.cumsum([len(answers) for _, answers in groups])[:-1])
    shuffled = contender.score([groups[i] for i in order])
    return np.array_equal(shuffled.score, found.score[np.concatenate([places[i] for i in order])])


def _work(contender: Contender, model: RewardModel, groups: Sequence[Group], found: Scores) -> dict[str, Any]:
    """Tokens and operations that the contender must compute, and the room that its forward passes have for them."""
    sequences, shape = sequences_of(groups), flops.shape_of(model.backbone)
    if contender.packs is None:
        work, slots = flops.whole(shape, sequences), found.computed_tokens
    else:
        options = contender.packs.options
        reads = [model.head.positions(ids) for ids in sequences]
        work = flops.packed(
            shape, sequences, reads, options.token_budget, options.share_prompts, options.needed_rows
        )
        slots = max(found.num_packs * options.token_budget, found.computed_tokens)
    return {"needed_tokens": work.tokens, "flops": work.flops, "slots": slots}
