"""What a model returns: alike however it is asked, alike in float32, alike to what was published or recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from armo_ray.engine import RewardModel, Scores
from armo_ray.model.checkpoint import Checkpoint
from armo_ray.verify.conversations import Sequences
from armo_ray.verify.files import Check

# In float32 sums in another order differ by some 1e-6; other machines and TF32 by more.
SAME, ELSEWHERE, ROUNDED = 1e-4, 2e-3, 0.02
# How much further from float32 a pack may be than one conversation alone is, in the same 16 bits.
_FACTOR = 3.0

Ids = Sequence[Any]


def score_alone(model: RewardModel, ids: Ids) -> Any:
    """One conversation after the other, (C, 1 + K) of score and rewards."""
    return np.concatenate([table(model.score([one])) for one in ids])


def table(scores: Scores) -> Any:
    return np.concatenate((scores.score[:, None], scores.rewards), axis=1)


def check_scores(
    model: RewardModel, checkpoint: Checkpoint, sequences: Sequences
) -> tuple[list[Check], dict[str, Any], Scores]:
    """Score the conversations in every way that the engine has.

    Returns checks, and the results (C, 1 + K) by the way they were made; "alone" is one at a time; and the
    scores of one pass over all.
    """
    plain, ids = model.with_options(share_prompts=False), sequences.ids
    shared = model.score(ids)
    ways = {
        "alone": score_alone(plain, ids),
        "shared": table(shared),
        "packed": table(plain.score(ids)),
        "other company": table(plain.score(ids[::-1]))[::-1],
    }
    checks = [_finite(ways), _identity(shared, checkpoint)]
    if checkpoint.family.reads == "gate":
        checks.append(_gates(shared, sequences.prompts))
    fixed = model.with_options(share_prompts=False, fixed_packs=True)
    first, second = table(fixed.score(ids)), table(fixed.score(ids[::-1]))[::-1]
    same = bool(np.array_equal(first, second))
    told = (
        "the same bits in any company" if same else f"differ by {np.abs(first - second).max():.2g} by company"
    )
    checks.append(Check("fixed packs", True, f"with --fixed-packs scores are {told}"))
    return checks, ways, shared


def _finite(ways: Mapping[str, Any]) -> Check:
    wrong = [name for name, found in ways.items() if not np.isfinite(found).all()]
    return Check("finite scores", not wrong, f"not when {', '.join(wrong)}" if wrong else "all of them")


def coefficients(scores: Scores, checkpoint: Checkpoint) -> Any:
    """The weight of each reward in each score, (C, K)."""
    if checkpoint.family.gated:
        return scores.gating @ np.array(checkpoint.transform).T
    return np.broadcast_to(checkpoint.coefficients, scores.rewards.shape)


def _identity(scores: Scores, checkpoint: Checkpoint) -> Check:
    """score == sum(rewards * (gating @ transform.T))"""
    expected = (scores.rewards * coefficients(scores, checkpoint)).sum(axis=1)
    off = float(np.abs(expected - scores.score).max())
    return Check("head identity", off < SAME, f"score is the weighted sum of its rewards, to {off:.1e}")


def _gates(scores: Scores, prompts: Sequence[int]) -> Check:
    _, first, which = np.unique(prompts, return_index=True, return_inverse=True)
    equal = bool((scores.gating == scores.gating[first[which]]).all())
    return Check("gates", equal, "a prompt has one" if equal else "differ between the answers of a prompt")


def check_ways(ways: Mapping[str, Any], exact: Any | None) -> list[Check]:
    """Whether no way of scoring is further from float32 than one conversation at a time, nor any beyond rounding."""
    checks = []
    alone = ways["alone"]
    allowed = _FACTOR * ROUNDED * _scale(alone if exact is None else exact)
    noise = float(np.abs(alone - exact).max()) if exact is not None else None
    if noise is not None:  # none at all where float32 is what was asked for
        allowed = min(max(_FACTOR * noise, SAME), allowed)
    for name, found in ways.items():
        off = float(np.abs(found - (alone if noise is None else exact)).max())
        apart = float(np.abs(found - alone).max())
        told = f"largest difference from alone {apart:.2e}" + (
            f", from float32 {off:.2e}" if noise is not None else ""
        )
        checks.append(Check(f"scored {name}", off <= allowed, f"{told}, allowed {allowed:.1e}"))
    return checks


def _scale(values: Any) -> float:
    """What rounding is relative to; values below 1 are sums of larger ones."""
    return max(1.0, float(np.abs(values).max()))


def named_values(found: Any, weights: Any, names: Sequence[str]) -> list[dict[str, float]]:
    """Score, rewards and coefficients of every sequence by their names."""
    columns = np.concatenate((found, weights), axis=1)
    labels = ["score", *names, *(f"coefficient {name}" for name in names)]
    return [dict(zip(labels, row, strict=True)) for row in columns.tolist()]


def check_expected(
    name: str, expected: Mapping[str, Any], own: Mapping[Any, Mapping[str, float]], exact: bool
) -> Check:
    """Compare with values that were published or recorded.

    `own` are the values of this model by their place; `exact` says that they are of float32.
    """
    known = {label for values in own.values() for label in values}
    if unknown := {label for entry in expected["values"] for label in entry["values"]} - known:
        return Check(name, False, f"they are of a model with other rewards, such as {min(unknown)}")
    both = exact and expected.get("dtype", "float32") == "float32"
    largest, worst = 0.0, ""
    failed = count = 0
    for entry in expected["values"]:
        here = own.get(tuple(entry["place"]), {})
        for label, value in entry["values"].items():
            off = abs(here.get(label, np.inf) - value)
            count += 1
            failed += not off <= entry.get("tolerance", (ELSEWHERE if both else ROUNDED) * _scale(value))
            if not off <= largest:
                largest = off
                worst = f" (conversation {entry['place'][0]}, {label}: {here.get(label)} for {value})"
    told = f"{count} values, {failed} too far off; the largest difference is {largest:.2e}{worst}"
    return Check(name, not failed, told)
