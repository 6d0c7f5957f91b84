"""The protocol for one workload: each contender warms up, then all take turns in rounds of alternating order."""

import gc
import logging
import math
import time
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
TIME_IS_OVER = "the time limit was reached first"
logger = logging.getLogger(__name__)


@dataclass
class Record:
    """The measurements of one contender on one workload."""

    name: str
    error: str | None = None  # the reason if it failed
    seconds: list[float] = field(default_factory=list)  # one per round
    facts: dict[str, Any] = field(default_factory=dict)  # measurements of the warm-up


@dataclass(frozen=True)
class Protocol:
    """How a workload is measured."""

    rounds: int  # timed passes per contender
    seed: int = 0  # for the shuffled order of prompts in which fixed packs must give the same bits
    reference: int | None = None  # candidates to compare with the plain implementation; None for all of them
    # on time.monotonic(): nothing begins after it, nor does a timed pass that would end after it
    deadline: float = math.inf

    def allows(self, seconds: float = 0.0) -> bool:
        """Whether this many more seconds end before the deadline."""
        return time.monotonic() + seconds < self.deadline


def take_turns(
    contenders: dict[str, Contender | str],
    model: RewardModel,
    groups: Sequence[Group],
    protocol: Protocol,
    keep: Callable[[list[Record], list[float]], None] = lambda records, rates: None,
) -> tuple[list[Record], list[float]]:
    """Measure all contenders.

    Args:
        contenders: by name; a contender that could not be prepared is given as the reason.
        groups: the workload.
        keep: called with what is known so far after every pass of a contender.

    Returns:
        A record for every contender, in their order, and the FLOP/s of a dense matrix product before each round.
    """
    records = {name: Record(name, c if isinstance(c, str) else None) for name, c in contenders.items()}
    prepared = {name: c for name, c in contenders.items() if isinstance(c, Contender)}
    rates: list[float] = []
    expected, compared = _reference(model, groups, protocol.reference)
    walls: dict[str, float] = {}
    for name, contender in prepared.items():
        if protocol.allows():
            walls[name] = _try_out(records[name], contender, model, groups, expected, compared, protocol.seed)
            keep(list(records.values()), rates)
    for turn in range(protocol.rounds):
        if not protocol.allows():
            break
        rates.append(measure.matmul_flops(model.backbone.dtype, model.device))
        for name in list(prepared)[:: -1 if turn % 2 else 1]:
            if name in walls and records[name].error is None and protocol.allows(walls[name]):
                walls[name] = _time(records[name], prepared[name], model, groups, turn)
                keep(list(records.values()), rates)
    for record in records.values():
        if record.error is None and not record.seconds:
            record.error = TIME_IS_OVER
    return list(records.values()), rates


def _reference(
    model: RewardModel, groups: Sequence[Group], candidates: int | None
) -> tuple[Scores | None, Sequence[Group]]:
    """Scores of the plain implementation in float32, and the groups that they cover, the first ones.

    `candidates`: how many to score, rounded up to whole groups; None for all, 0 for none.
    """
    ends = np.cumsum([len(responses) for _, responses in groups])
    count = len(groups) if candidates is None else int(np.searchsorted(ends, candidates)) + bool(candidates)
    compared = groups[:count]
    if not compared:
        return None, compared
    expected, error = attempt(lambda: baselines.reference(model, compared))
    release()
    logger.info("  float32 reference: %s", error or "done")
    return expected, compared


def _try_out(
    record: Record,
    contender: Contender,
    model: RewardModel,
    groups: Sequence[Group],
    expected: Scores | None,
    compared: Sequence[Group],
    seed: int,
) -> float:
    """The first pass, with everything that is measured only once; returns the seconds of wall time that it took."""
    started = time.monotonic()
    measured = partial(_warm_up, contender, model, groups, expected, compared, seed)
    facts, record.error = attempt(measured)
    record.facts = facts or {}
    logger.info("  %s, warm-up: %s", record.name, record.error or "done")
    return time.monotonic() - started


def _time(
    record: Record, contender: Contender, model: RewardModel, groups: Sequence[Group], turn: int
) -> float:
    """A timed pass; returns the seconds of wall time that it took."""
    started = time.monotonic()
    timed, record.error = attempt(partial(measure.timed, partial(contender.score, groups), model.device))
    record.seconds += [timed[1]] if timed else []
    outcome = record.error or f"{record.seconds[-1]:.2f} s"
    logger.info("  %s, round %d: %s", record.name, turn + 1, outcome)
    return time.monotonic() - started


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
    compared: Sequence[Group],
    seed: int,
) -> dict[str, Any]:
    """Score once, which may compile, and measure everything except the seconds."""
    scores, peak = measure.with_peak(lambda: contender.score(groups), model.device)
    facts: dict[str, Any] = {"computed_tokens": scores.computed_tokens, "forwards": scores.num_packs}
    facts["peak_bytes"] = peak
    facts |= _work(contender, model, groups, scores)
    if expected is not None:
        count = len(expected.score)
        few = scores._replace(score=scores.score[:count], rewards=scores.rewards[:count])
        facts |= {"compared": count, **errors(few, expected, compared)}
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
