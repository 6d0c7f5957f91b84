"""Checks of scores: the same by every method, close to float32, and close to published or recorded values."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from armo_ray.engine import RewardModel, Scores
from armo_ray.model.checkpoint import Checkpoint
from armo_ray.verify.conversations import Sequences
from armo_ray.verify.files import Check

# in float32, sums in another order differ by about 1e-6; other machines and TF32 differ by more
SAME, ELSEWHERE, ROUNDED = 1e-4, 2e-3, 0.02
# how much farther from float32 a pack may be than a conversation scored alone in the same 16-bit type
_FACTOR = 3.0

Ids = Sequence[Any]


def score_alone(model: RewardModel, ids: Ids) -> Any:
    """Score one sequence at a time: (C, 1 + K), score and rewards."""
    return np.concatenate([table(model.score([sequence])) for sequence in ids])


def table(scores: Scores) -> Any:
    """Score and rewards, (C, 1 + K)."""
    return np.concatenate((scores.score[:, None], scores.rewards), axis=1)


def check_scores(
    model: RewardModel, checkpoint: Checkpoint, sequences: Sequences
) -> tuple[list[Check], dict[str, Any], Scores]:
    """Score the conversations by every method of the engine.

    Returns checks, the results by method, each (C, 1 + K), and the scores of all sequences with shared prompts. The
    method "alone" scores one sequence at a time.
    """
    plain, ids = model.with_options(share_prompts=False), sequences.ids
    shared = model.score(ids)
    ways = {
        "alone": score_alone(plain, ids),
        "shared": table(shared),
        "packed": table(plain.score(ids)),
        "reversed": table(plain.score(ids[::-1]))[::-1],
    }
    checks = [_finite(ways), _identity(shared, checkpoint)]
    if checkpoint.family.reads == "gate":
        checks.append(_gates(shared, sequences.prompts))
    fixed = model.with_options(share_prompts=False, fixed_packs=True)
    first, second = table(fixed.score(ids)), table(fixed.score(ids[::-1]))[::-1]
    same = bool(np.array_equal(first, second))
    difference = f"differ by up to {np.abs(first - second).max():.2g} in another order"
    detail = "have the same bits in any order" if same else difference
    checks.append(Check("fixed packs", True, f"with --fixed-packs scores {detail}"))
    return checks, ways, shared


def _finite(ways: Mapping[str, Any]) -> Check:
    wrong = [name for name, scores in ways.items() if not np.isfinite(scores).all()]
    return Check(
        "finite scores", not wrong, f"not when scored {', '.join(wrong)}" if wrong else "all of them"
    )


def coefficients(scores: Scores, checkpoint: Checkpoint) -> Any:
    """The weight of each reward in each score, (C, K)."""
    if checkpoint.family.gated:
        return scores.gating @ np.array(checkpoint.transform).T
    return np.broadcast_to(checkpoint.coefficients, scores.rewards.shape)


def _identity(scores: Scores, checkpoint: Checkpoint) -> Check:
    """score == sum(rewards * (gating @ transform.T))"""
    expected = (scores.rewards * coefficients(scores, checkpoint)).sum(axis=1)
    off = float(np.abs(expected - scores.score).max())
    return Check("head identity", off < SAME, f"score is the weighted sum of its rewards, within {off:.1e}")


def _gates(scores: Scores, prompts: Sequence[int]) -> Check:
    _, first, which = np.unique(prompts, return_index=True, return_inverse=True)
    equal = bool((scores.gating == scores.gating[first[which]]).all())
    return Check(
        "gates",
        equal,
        "the same for all responses of a prompt" if equal else "differ between the responses of a prompt",
    )


def check_ways(ways: Mapping[str, Any], exact: Any | None) -> list[Check]:
    """Check that no method is much farther from float32 than scoring alone, nor farther than rounding explains."""
    checks = []
    alone = ways["alone"]
    allowed = _FACTOR * ROUNDED * _scale(alone if exact is None else exact)
    noise = float(np.abs(alone - exact).max()) if exact is not None else None
    if noise is not None:  # 0 if the requested dtype is float32
        allowed = min(max(_FACTOR * noise, SAME), allowed)
    for name, scores in ways.items():
        off = float(np.abs(scores - (alone if noise is None else exact)).max())
        from_alone = float(np.abs(scores - alone).max())
        detail = f"largest difference from alone {from_alone:.2e}" + (
            f", from float32 {off:.2e}" if noise is not None else ""
        )
        checks.append(Check(f"scored {name}", off <= allowed, f"{detail}, allowed {allowed:.1e}"))
    return checks


def _scale(values: Any) -> float:
    """The magnitude that rounding is relative to, at least 1: smaller values are sums of larger ones."""
    return max(1.0, float(np.abs(values).max()))


def named_values(scores: Any, weights: Any, names: Sequence[str]) -> list[dict[str, float]]:
    """Score, rewards and coefficients of every sequence by name, from scores (C, 1 + K) and weights (C, K)."""
    columns = np.concatenate((scores, weights), axis=1)
    labels = ["score", *names, *(f"coefficient {name}" for name in names)]
    return [dict(zip(labels, row, strict=True)) for row in columns.tolist()]


def check_expected(
    name: str, expected: Mapping[str, Any], own: Mapping[Any, Mapping[str, float]], exact: bool
) -> Check:
    """Compare the values of this model with published or recorded ones.

    `own`: the values by place, as in `Sequences.places`. `exact`: whether they were computed in float32.
    """
    labels = {label for values in own.values() for label in values}
    if unknown := {label for entry in expected["values"] for label in entry["values"]} - labels:
        return Check(name, False, f"they belong to a model with other rewards, such as {min(unknown)}")
    both = exact and expected.get("dtype", "float32") == "float32"
    largest, worst = 0.0, ""
    failed = count = 0
    for entry in expected["values"]:
        values = own.get(tuple(entry["place"]), {})
        for label, value in entry["values"].items():
            off = abs(values.get(label, np.inf) - value)
            count += 1
            failed += not off <= entry.get("tolerance", (ELSEWHERE if both else ROUNDED) * _scale(value))
            if not off <= largest:
                largest = off
                worst = f" (conversation {entry['place'][0]}, {label}: {values.get(label)}, expected {value})"
    detail = f"{count} values, {failed} too far off; the largest difference is {largest:.2e}{worst}"
    return Check(name, not failed, detail)
