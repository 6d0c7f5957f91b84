"""What becomes of the hidden states that a head reads: named rewards and one score, in float32 throughout.

The released code runs heads in the backbone's dtype, which in bfloat16 leaves 8 bits of a score; upcasting
the few hidden states that are read costs nothing and removes those ties.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from armo_ray.engine.fixed_shape import in_blocks
from armo_ray.engine.packing import Ids
from armo_ray.model.families import Family
from armo_ray.model.positions import read_positions

Tensor = torch.Tensor
Tensors = Mapping[str, Tensor]
Layers = Sequence[Callable[[Tensor], Tensor]]


class HeadOutput(NamedTuple):
    score: Tensor  # (C,)
    rewards: Tensor  # (C, K)
    gating: Tensor  # (C, K), or (C, 0) of a head without gates
    steps: Tensor  # (N,) what each position says, of a head that reads many; otherwise (0,)


# Of the hidden states (R, H) that were read, which of them each position is (N,), and the number of positions
# of each candidate (C,), which add up to N.
Compute = Callable[[Tensor, Tensor, Tensor], HeadOutput]


@dataclass(frozen=True)
class Head:
    """Which tokens of a conversation are read, and what is computed from their hidden states."""

    names: tuple[str, ...]  # of the K rewards
    family: Family
    pattern: Ids  # from the end of a user turn to the answer
    compute: Compute

    def positions(self, ids: Ids) -> list[int]:
        """The positions that are read of a conversation; none where it lacks what marks them."""
        return read_positions(ids, self.family, self.pattern)


def armorm(tensors: Tensors, temperature: float) -> Compute:
    """ArmoRM, tensors named as in the checkpoint.

    Source: modeling_custom.py of RLHFlow/ArmoRM-Llama3-8B-v0.1. With h the final hidden states:
    rewards = W h[last], gating = softmax(MLP(h[gate]) / temperature) * logit_scale,
    score = sum((rewards @ T) * gating).
    """
    regression, transform = _linear(tensors, "regression_layer"), tensors["reward_transform_matrix"]
    depth = sum(name.startswith("gating.layers.") for name in tensors) // 2
    layers = relu_mlp(tensors, [f"gating.layers.{i}" for i in range(depth)])
    gate = partial(_softmax_gate, layers, temperature, tensors["gating.logit_scale"])

    def compute(hidden: Tensor, index: Tensor, lengths: Tensor) -> HeadOutput:
        hidden, (gates, last) = hidden.float(), index.view(-1, 2).T
        rewards = in_blocks(regression, hidden)
        debiased = in_blocks(lambda r: r @ transform, rewards)
        gating = in_blocks(gate, hidden)[gates]
        return HeadOutput((debiased[last] * gating).sum(dim=1), rewards[last], gating, _none(hidden))

    return compute


def qrm(tensors: Tensors, temperature: float, num_quantiles: int) -> Compute:
    """QRM: the mean of each reward's quantiles, transformed, under a gate with batch norms.

    Source: rewardbench/models/qrm.py of allenai/reward-bench. Its rewards are those after the transform.
    """
    regression, transform = _linear(tensors, "regression_layer"), tensors["reward_transform_matrix"]
    depth = sum(name.endswith(".running_mean") for name in tensors)
    layers: list[Callable[[Tensor], Tensor]] = []
    for i in range(0, 3 * depth, 3):
        layers += [
            _linear(tensors, f"gating.layers.{i}"),
            F.relu,
            _batch_norm(tensors, f"gating.layers.{i + 2}"),
        ]
    layers.append(_linear(tensors, f"gating.layers.{3 * depth}"))
    gate = partial(_softmax_gate, layers, temperature, tensors["gating.logit_scale"])

    def expected(hidden: Tensor) -> Tensor:
        return regression(hidden).view(len(hidden), -1, num_quantiles).mean(dim=2) @ transform

    def compute(hidden: Tensor, index: Tensor, lengths: Tensor) -> HeadOutput:
        hidden, (gates, last) = hidden.float(), index.view(-1, 2).T
        rewards, gating = in_blocks(expected, hidden)[last], in_blocks(gate, hidden)[gates]
        return HeadOutput((rewards * gating).sum(dim=1), rewards, gating, _none(hidden))

    return compute


def urm(tensors: Tensors) -> Compute:
    """URM: means of normal distributions, weighed by an MLP of the same token.

    Source: LlamaForSequenceClassificationWithNormal_Weights of LxzGordon/URM-LLaMa-3.1-8B; of every two
    labels the first is a mean, the second tells its spread and is not used.
    """
    means = _linear(tensors, "score")
    weigh = partial(through, interleaved(tensors, [f"weights.fc.{i}" for i in (0, 2, 4)], F.selu))

    def compute(hidden: Tensor, index: Tensor, lengths: Tensor) -> HeadOutput:
        hidden = hidden.float()
        rewards, gating = in_blocks(means, hidden)[index, ::2], in_blocks(weigh, hidden)[index]
        return HeadOutput((rewards * gating).sum(dim=1), rewards, gating, _none(hidden))

    return compute


def labels(layers: Layers, coefficients: Tensor) -> Compute:
    """A reward for every label of the last layer; the score weighs them by `coefficients` (K,)."""

    def compute(hidden: Tensor, index: Tensor, lengths: Tensor) -> HeadOutput:
        hidden = hidden.float()
        rewards = in_blocks(partial(through, layers), hidden)[index]
        return HeadOutput(rewards @ coefficients, rewards, _no_gates(rewards), _none(hidden))

    return compute


def odds(rows: Tensor, softcap: float | None) -> Compute:
    """The probability of the first of two tokens, by their rows (2, H) of the language-model head."""

    def compute(hidden: Tensor, index: Tensor, lengths: Tensor) -> HeadOutput:
        first = _first_of_two(rows, softcap, hidden.float())[index]
        return HeadOutput(first[:, 0], first, _no_gates(first), _none(first))

    return compute


def step_odds(rows: Tensor, softcap: float | None) -> Compute:
    """`odds` of every step; of a candidate's steps their mean, which is the score, least, product and last."""

    def compute(hidden: Tensor, index: Tensor, lengths: Tensor) -> HeadOutput:
        steps = _first_of_two(rows, softcap, hidden.float())[index, 0]
        reduced = [torch.segment_reduce(steps, how, lengths=lengths) for how in ("mean", "min", "prod")]
        rewards = torch.stack([*reduced, steps[lengths.cumsum(0) - 1]], dim=1)
        return HeadOutput(rewards[:, 0], rewards, _no_gates(rewards), steps)

    return compute


def _first_of_two(rows: Tensor, softcap: float | None, hidden: Tensor) -> Tensor:
    logits = in_blocks(lambda h: F.linear(h, rows), hidden)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.softmax(dim=1)[:, :1]


def relu_mlp(tensors: Tensors, names: Sequence[str]) -> Layers:
    """Linear layers with a ReLU between any two."""
    return interleaved(tensors, names, F.relu)


def interleaved(tensors: Tensors, names: Sequence[str], between: Callable[[Tensor], Tensor]) -> Layers:
    """Linear layers of these names, with a function between any two."""
    layers: list[Callable[[Tensor], Tensor]] = []
    for name in names:
        layers += [between, _linear(tensors, name)]
    return layers[1:]


def through(layers: Layers, hidden: Tensor) -> Tensor:
    """One layer after the other."""
    for layer in layers:
        hidden = layer(hidden)
    return hidden


def _linear(tensors: Tensors, name: str) -> Callable[[Tensor], Tensor]:
    return partial(F.linear, weight=tensors[f"{name}.weight"], bias=tensors.get(f"{name}.bias"))


def _batch_norm(tensors: Tensors, name: str) -> Callable[[Tensor], Tensor]:
    mean, variance, weight, bias = (
        tensors[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return lambda x: F.batch_norm(x, mean, variance, weight, bias)


def _softmax_gate(layers: Layers, temperature: float, scale: Tensor, hidden: Tensor) -> Tensor:
    return F.softmax(through(layers, hidden) / temperature, dim=1) * scale


def _no_gates(rewards: Tensor) -> Tensor:
    return rewards.new_empty(len(rewards), 0)


def _none(hidden: Tensor) -> Tensor:
    return hidden.new_empty(0)
