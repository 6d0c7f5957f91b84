"""The gate of a head, and the held-out table that tells what it is worth beside simpler ways to score."""

import logging
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from armo_ray.errors import ConfigError
from armo_ray.fit.held_out_table import Scored, Split, fit_linear, longer
from armo_ray.fit.objectives import Objectives
from armo_ray.fit.options import FitOptions
from armo_ray.fit.pairs import Pairs
from armo_ray.fitting import gate_choice, gates
from armo_ray.fitting.bradley_terry import bradley_terry, scale_of
from armo_ray.fitting.gates import Gate

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]

CHOOSING_FOLD = 0  # of the fitted pairs: `auto` chooses on it, so that test pairs only measure
UNEVEN = 2.0  # times the smallest standard deviation, from which rewards of equal weights count unequally
_DEAD = -30.0  # logarithm of the weight of a reward that counts for nothing, beside those of others
_SMALL = 1e-3  # penalty on free weights, relative; a little, for rewards that are all alike
LINEAR_COST = 2e10  # pairs times the square of a hidden state's size: a second of a core a pass, of about 300


class Chosen(NamedTuple):
    """A gate, and all pairs by each way of scoring that was tried."""

    gate: Gate
    facts: dict[str, Any]
    scored: dict[str, Scored]


def without_pairs(rewards: Objectives, asked: str, tested: int = 0) -> Chosen:
    """Equal weights of all rewards but a dead one. Raises ConfigError if another gate was asked for.

    tested: pairs of test prompts, to which nothing is fitted.
    """
    of = f": all {tested:,} are of test prompts" if tested else ""
    if asked not in ("auto", "uniform"):
        raise ConfigError(
            f"--gate {asked}: no pairs to fit it to{of}: give outputs with chosen and rejected answers as --pairs, or "
            f"take --gate uniform"
        )
    why = "" if asked == "uniform" else f"There were no pairs to fit weights to{of}."
    live = _live(rewards)
    gate = gates.constant_gate("uniform", gates.uniform_weights(len(live)), rewards.weights.shape[1], 0.0)
    shares = {rewards.names[k]: 1 / len(live) for k in live}
    facts = {"kind": "uniform", "why": why, "beta": None, "weights": shares}
    return Chosen(with_dead(gate, rewards.dead), facts, {})


def uneven(rewards: Objectives) -> str:
    """What equal weights hide: without declared ranges, the label with the largest numbers decides. Else empty."""
    live = _live(rewards)
    labels = rewards.facts["objectives"]
    if len(live) < 2 or all(labels[k]["scale"] is not None for k in live):
        return ""
    spread = (rewards.sample.predicted @ rewards.transform)[:, live].std(axis=0)
    if spread.max() <= UNEVEN * spread.min():
        return ""
    most, least = (rewards.names[live[int(of(spread))]] for of in (np.argmax, np.argmin))
    return (
        f"Equal weights of rewards whose spread is not equal: {most} (standard deviation {spread.max():.3g}) decides "
        f"the score more than {least} ({spread.min():.3g}) does; --scale NAME=LOW:HIGH gives labels one range, and "
        f"pairs fit weights to them."
    )


def _live(rewards: Objectives) -> list[int]:
    """The places of the rewards that count."""
    return [k for k in range(len(rewards.names)) if k != rewards.dead]


def with_dead(gate: Gate, dead: int | None) -> Gate:
    """The gate with one more reward, at place `dead`, whose weight is as good as 0.

    A reward that only lowers others counts for nothing. Were it weighted, it would only make scores smaller.
    """
    if dead is None:
        return gate
    *before, (weight, bias) = gate.layers
    low = gate.temperature * _DEAD + float(bias.min() if not weight.any() else 0.0)
    last = np.insert(weight, dead, 0.0, axis=0), np.insert(bias, dead, low).astype(np.float32)
    return gate._replace(layers=(*before, last))


def choose_gate(options: FitOptions, rewards: Objectives, pairs: Pairs, split: Split) -> Chosen:
    """Fit the gate that was asked for, or with `auto` the better one, and what it is compared with."""
    live = _live(rewards)
    names = [rewards.names[k] for k in live]
    raw = unseen_rewards(rewards, pairs, split)
    whole = gates.RewardPairs(*_states(pairs), (raw @ rewards.transform)[:, live])
    fitted, why = _some(whole, split.fitted), ""
    kind: str = options.gate
    if kind == "auto":
        choosing = split.folds == CHOOSING_FOLD
        kind, why = _choose(pairs, whole, split.fitted & ~choosing, split.fitted & choosing, options.seed)
    elif kind == "mlp" and not len(pairs.gates):
        raise ConfigError(
            "--gate mlp: the outputs with pairs hold no hidden states of prompts: make them with embed"
        )
    gate = gate_choice.fit_gate(kind, fitted, options.seed)
    tried = {kind: gate}
    needed = gate_choice.needed_pairs(len(names))
    networks = ["mlp"] if options.gate == "auto" and len(pairs.gates) else []
    for other in ("uniform", "constant", *networks) if len(names) > 1 else ():
        if other not in tried and len(fitted.of) >= needed[other]:
            tried[other] = gate_choice.fit_gate(other, fitted, options.seed)
    scored = {"longer answer": longer(pairs)}
    if (rewards.transform != np.eye(len(rewards.names))).any():
        scored["equal weights, rewards as they are"] = Scored(raw[:, live].mean(axis=1), None)
    labels = {"uniform": "equal weights", "constant": "constant weights", "mlp": "network"}
    for k in (k for k in labels if k in tried):
        factor = tried[k].beta if k == "mlp" else None
        scored[labels[k]] = Scored(gates.margins(tried[k], whole), factor)
    scored |= _free(whole.differences, split)
    scored |= _linear(options, pairs, split)
    facts: dict[str, Any] = {
        "kind": gate.kind,
        "why": why,
        "beta": None if gate.kind == "uniform" else gate.beta,
        "temperature": gate.temperature,
    }
    if gate.kind != "mlp":
        shares = gates.weights_of(gate, np.zeros((1, rewards.weights.shape[1]), np.float32))[0]
        facts["weights"] = {name: float(share) for name, share in zip(names, shares, strict=True)}
    return Chosen(with_dead(gate, rewards.dead), facts, scored)


def unseen_rewards(rewards: Objectives, pairs: Pairs, split: Split) -> Array:
    """Differences (N, K) of rewards of which no head was fitted to labels of the pair's prompt.

    A head knows the labels that it was fitted to better than others, and the more so the worse it predicts: weights
    that are fitted to such rewards trust the worst ones too much.
    """
    found = np.empty((len(pairs), len(rewards.names)))
    heads = [(split.tested, rewards.weights)]
    heads += [(split.fitted & (split.folds == i), weights) for i, weights in enumerate(rewards.fold_weights)]
    for of, weights in heads:
        if of.any():
            found[of] = np.concatenate([block @ weights.T for block in pairs.blocks(of)])
    return found


def _states(pairs: Pairs) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Hidden states of the prompts, and the place of each pair's; zeros where none were kept."""
    if len(pairs.gates):
        return pairs.gates, pairs.gate_of
    return np.zeros((1, pairs.difference.shape[1]), np.float32), np.zeros(len(pairs), np.int64)


def _some(pairs: gates.RewardPairs, selected: npt.NDArray[np.bool_]) -> gates.RewardPairs:
    """Some of the pairs, with the hidden states of their prompts alone."""
    used, of = np.unique(pairs.of[selected], return_inverse=True)
    return gates.RewardPairs(np.asarray(pairs.prompts)[used], of.reshape(-1), pairs.differences[selected])


def _choose(
    pairs: Pairs,
    whole: gates.RewardPairs,
    fitted: npt.NDArray[np.bool_],
    choosing: npt.NDArray[np.bool_],
    seed: int,
) -> tuple[str, str]:
    """The kind of gate that is better on some of the pairs that are not tested, and why."""
    if whole.differences.shape[1] == 1:
        return "uniform", "There is one reward, whose weight is 1."
    needed = gate_choice.needed_pairs(whole.differences.shape[1])
    count = int((fitted | choosing).sum())
    if count < needed["constant"]:
        return "uniform", f"{count} pairs are too few to fit weights to: {needed['constant']} are needed."
    if not len(pairs.gates):
        return "constant", "The outputs hold no hidden states of prompts, which a network would read."
    if not choosing.any() or int(fitted.sum()) < needed["constant"]:
        return "constant", f"{count} pairs are too few to compare it with a network."
    kind, reason = gate_choice.better_kind(_some(whole, fitted), _some(whole, choosing), seed)
    return kind, f"Chosen by {int(choosing.sum()):,} pairs that are not tested: {reason}."


def _free(differences: Array, split: Split) -> dict[str, Scored]:
    """Weights of any sign, which a gate cannot have."""
    own = differences[split.fitted]
    weights = bradley_terry(lambda: [own], _SMALL * scale_of(lambda: [own]))
    return {"constant weights of any sign": Scored(differences @ weights, 1.0)}


def _linear(options: FitOptions, pairs: Pairs, split: Split) -> dict[str, Scored]:
    """A Bradley-Terry head on hidden states, unless it would take longer than all else."""
    count, size = int(split.fitted.sum()), pairs.difference.shape[1]
    if count * size**2 > LINEAR_COST:
        logger.info("no Bradley-Terry head to compare with: %s pairs would take long", f"{count:,}")
        return {}
    try:
        linear = fit_linear(pairs, split, options.folds)
    except ConfigError:  # too few pairs for it, which are enough for weights of rewards
        return {}
    return {"Bradley-Terry head": Scored(pairs.project(linear.weights[None])[:, 0], 1.0)}
