"""Weights of rewards in a score, learned from pairs: equal, the same for all prompts, or of a network of the prompt.

A pair's margin is the weighted difference of its rewards, chosen less rejected, and its loss softplus(-beta * margin).
`beta` makes up for the scale of the labels, which is arbitrary: without it, differences of labels from 0 to 1 are far
too small to be log-odds, and a network that must explain pairs by them puts all weight on one reward. It is used in
fitting alone: weights sum to 1, so that scores stay on the scale of the labels.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from armo_ray.errors import ConfigError
from armo_ray.fitting.held_out import log_losses
from armo_ray.fitting.statistics import Floats

TEMPERATURE = 10.0  # as in the released model
_LEAST = 1e-6  # no weight is smaller, as its logarithm is a bias
_BARRIERS = tuple(10.0**-power for power in range(2, 10))

Layers = tuple[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], ...]


class RewardPairs(NamedTuple):
    """Pairs of responses to P prompts with K rewards."""

    prompts: npt.NDArray[np.float32]  # (P, H) the hidden state that the gate reads; may lie in a file
    of: npt.NDArray[np.int64]  # (n,) the place in `prompts` of each pair's prompt
    differences: Floats  # (n, K) of the transformed rewards, chosen less rejected


class Gate(NamedTuple):
    """Weights softmax(MLP(h) / temperature) with relu between layers, as the checkpoint's format has them."""

    kind: str  # uniform, constant or mlp; of a larger model's gates: teacher or teacher-constant
    layers: Layers  # of each layer the weight (out, in) and the bias (out,)
    temperature: float
    beta: float  # log-odds of a margin of 1


class Recipe(NamedTuple):
    """How a network is trained (armo_ray.fitting.network)."""

    hidden_layers: int = 1
    width: int = 256
    steps: int = 1000  # at most
    batch: int = 1024  # pairs, or prompts
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    dropout: float = 0.2
    every: int = 25  # steps between validations
    validation: int = 10  # one prompt in so many is not trained on
    patience: int = 8  # validations without a better one before training ends


RECIPE = Recipe()


def beta_of(differences: Floats) -> float:
    """1 / the standard deviation of the margins with equal weights. Raises ConfigError if they do not differ."""
    if not len(differences):
        raise ConfigError("there are no pairs to fit a gate to: give --pairs, or --gate uniform")
    spread = float(differences.mean(axis=1).std())
    # margins that are all equal say nothing of the scale of others
    spread = spread if spread > 0 else float(np.sqrt(np.square(differences).mean()))
    if not (np.isfinite(spread) and spread > 0):
        raise ConfigError("the rewards of both responses are equal in every pair: there is nothing to weight")
    return 1 / spread


def uniform_weights(rewards: int) -> Floats:
    """Equal weights (K,)."""
    return np.full(rewards, 1 / rewards)


def constant_weights(differences: Floats, beta: float) -> Floats:
    """The weights (K,) that are not negative, sum to 1, and have the largest likelihood.

    A convex problem: Newton's method with a logarithmic barrier that shrinks to 1e-9, about 40 passes.
    """
    weights = uniform_weights(differences.shape[1])
    for barrier in _BARRIERS:
        for _ in range(30):
            step = _newton_step(differences, beta, weights, barrier)
            weights, moved = _descended(differences, beta, weights, step, barrier)
            if moved < 1e-9:
                break
    return weights


def constant_gate(
    kind: str, weights: Floats, size: int, beta: float, temperature: float = TEMPERATURE
) -> Gate:
    """The same weights (K,) for every prompt, as one layer for hidden states of `size` units that ignores them."""
    bias = temperature * np.log(np.maximum(weights, _LEAST))
    layer = np.zeros((len(weights), size), np.float32), bias.astype(np.float32)
    return Gate(kind, (layer,), temperature, beta)


def weights_of(gate: Gate, prompts: npt.NDArray[np.floating[Any]]) -> Floats:
    """The weights (P, K) for prompts (P, H)."""
    x: Floats = prompts.astype(np.float64)
    for i, (weight, bias) in enumerate(gate.layers):
        x = (np.maximum(x, 0.0) if i else x) @ weight.T.astype(np.float64) + bias
    x = x / gate.temperature
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    result: Floats = powers / powers.sum(axis=1, keepdims=True)
    return result


def margins(gate: Gate, pairs: RewardPairs, block: int = 1 << 12) -> Floats:
    """The margins (n,) of pairs on the scale of the rewards; times `gate.beta` they are log-odds."""
    starts = range(0, len(pairs.prompts), block)
    parts = [weights_of(gate, np.asarray(pairs.prompts[begin : begin + block])) for begin in starts]
    weights = np.concatenate(parts) if parts else np.zeros((0, pairs.differences.shape[1]))
    result: Floats = np.einsum("nk,nk->n", weights[pairs.of], pairs.differences)
    return result


def _objective(differences: Floats, beta: float, weights: Floats, barrier: float) -> float:
    losses = log_losses(beta * (differences @ weights))
    return float(losses.mean() - barrier * np.log(weights).sum())


def _newton_step(differences: Floats, beta: float, weights: Floats, barrier: float) -> Floats:
    """Newton's step among weights with the same sum."""
    margins = beta * (differences @ weights)
    wrong = np.exp(-np.logaddexp(0, margins))  # the probability of the other order
    gradient = -beta * (wrong @ differences) / len(differences) - barrier / weights
    rows = differences * np.sqrt(wrong * (1 - wrong) / len(differences))[:, None]
    curvature = beta**2 * (rows.T @ rows) + np.diag(barrier / weights**2)
    ones = np.ones(len(weights))
    along, across = np.linalg.solve(curvature, np.stack([gradient, ones], axis=1)).T
    step: Floats = along.sum() / across.sum() * across - along
    return step


def _descended(
    differences: Floats, beta: float, weights: Floats, step: Floats, barrier: float
) -> tuple[Floats, float]:
    """The weights after a step that keeps them positive and does not raise the objective, and how far that was."""
    shrinking = step < 0
    length = min(1.0, 0.99 * float((weights[shrinking] / -step[shrinking]).min(initial=np.inf)))
    before = _objective(differences, beta, weights, barrier)
    for _ in range(50):
        after = weights + length * step
        if _objective(differences, beta, after, barrier) <= before:
            return after / after.sum(), float(np.abs(length * step).max())
        length /= 2
    return weights, 0.0
