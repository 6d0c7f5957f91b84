"""The heads: they compute named rewards and one score from the hidden states that they read, in float32.

The released code computes heads in the backbone's dtype, and in bfloat16 a score has only 8 bits. Upcasting the few
hidden states that are read costs nothing and removes the resulting ties.
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
from armo_ray.model.recognize import STEP_REWARDS

Tensor = torch.Tensor
Tensors = Mapping[str, Tensor]
Layers = Sequence[Callable[[Tensor], Tensor]]


_VOCABULARY_PART = 1 << 14  # rows of the language-model head


class HeadOutput(NamedTuple):
    """The result of a head for C candidates with K rewards."""

    score: Tensor  # (C,)
    rewards: Tensor  # (C, K)
    gating: Tensor  # (C, K), or (C, 0) for a head without gates
    steps: Tensor  # (N,) rewards of the steps of all candidates from a process model's head; otherwise (0,)


# Arguments: distinct hidden states (R, H), an index into them for each position that is read (N,), and the number of
# positions of each candidate (C,), whose sum is N.
Compute = Callable[[Tensor, Tensor, Tensor], HeadOutput]


@dataclass(frozen=True)
class Head:
    """The tokens of a conversation that are read, and the function that computes rewards from their hidden states."""

    names: tuple[str, ...]  # names of the K rewards
    family: Family
    pattern: Ids  # token ids from the end of a user turn to the response, or the one after each step
    compute: Compute

    def positions(self, ids: Ids, start: int = 0) -> list[int]:
        """The positions that the head reads; an empty list if the conversation lacks the tokens that mark them.

        `start` is the number of tokens before the response, in which no step ends; each token of a response is
        predicted at the one before it.
        """
        return read_positions(ids, self.family, self.pattern, start)


def armorm(tensors: Tensors, temperature: float) -> Compute:
    """ArmoRM's head, from tensors named as in the checkpoint.

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
        gating = in_blocks(gate, hidden).index_select(0, gates)
        rewards, debiased = (x.index_select(0, last) for x in (rewards, debiased))
        return HeadOutput((debiased * gating).sum(dim=1), rewards, gating, _none(hidden))

    return compute


def qrm(tensors: Tensors, temperature: float, num_quantiles: int) -> Compute:
    """QRM's head: each reward is the mean of its quantiles, transformed; the gate has batch norms.

    Source: rewardbench/models/qrm.py of allenai/reward-bench. The rewards are returned after the transform.
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
    """URM's head: rewards are means of normal distributions, weighted by an MLP of the same token.

    Source: LlamaForSequenceClassificationWithNormal_Weights of LxzGordon/URM-LLaMa-3.1-8B. Labels come in pairs of a
    mean and a spread; the spread is not used.
    """
    means = _linear(tensors, "score")
    weights = partial(through, interleaved(tensors, [f"weights.fc.{i}" for i in (0, 2, 4)], F.selu))

    def compute(hidden: Tensor, index: Tensor, lengths: Tensor) -> HeadOutput:
        hidden = hidden.float()
        rewards, gating = in_blocks(means, hidden)[index, ::2], in_blocks(weights, hidden)[index]
        return HeadOutput((rewards * gating).sum(dim=1), rewards, gating, _none(hidden))

    return compute


def ldl(tensors: Tensors, levels: int, temperature: float, softmax: bool) -> Compute:
    """LDL-Reward's head: rewards are the means of distributions over levels from 0 to 1, weighted by an MLP.

    Source: rewardbench/models/ldlreward.py of allenai/reward-bench, which sums the weighted distributions first.
    `softmax` says whether the weights of a response sum to 1.
    """
    names = {"regression_layer": (0, 2, 4), "gating_layer": (0, 3, 6)}
    distributions, weights = (
        interleaved(tensors, [f"{name}.network.{i}" for i in numbers], F.leaky_relu)
        for name, numbers in names.items()
    )

    def means(hidden: Tensor) -> Tensor:
        probabilities = through(distributions, hidden).view(len(hidden), -1, levels).softmax(dim=2)
        return probabilities @ torch.linspace(0, 1, levels, device=hidden.device)

    def gates(hidden: Tensor) -> Tensor:
        gating = through(weights, hidden)
        return F.softmax(gating / temperature, dim=1) if softmax else gating

    def compute(hidden: Tensor, index: Tensor, lengths: Tensor) -> HeadOutput:
        hidden = hidden.float()
        rewards, gating = in_blocks(means, hidden)[index], in_blocks(gates, hidden)[index]
        return HeadOutput((rewards * gating).sum(dim=1), rewards, gating, _none(hidden))

    return compute


def no_rewards(hidden: Tensor, index: Tensor, lengths: Tensor) -> HeadOutput:
    """A head that only says which hidden states are read: no rewards, and scores of zero."""
    rewards = hidden.new_empty(len(lengths), 0, dtype=torch.float32)
    return HeadOutput(rewards.sum(dim=1), rewards, rewards, _none(rewards))


def labels(layers: Layers, coefficients: Tensor) -> Compute:
    """A head with a reward for every label of the last layer; the score weights them by `coefficients` (K,)."""

    def compute(hidden: Tensor, index: Tensor, lengths: Tensor) -> HeadOutput:
        hidden = hidden.float()
        rewards = in_blocks(partial(through, layers), hidden)[index]
        return HeadOutput(rewards @ coefficients, rewards, _no_gates(rewards), _none(hidden))

    return compute


def label_odds(rows: Tensor, vocabulary: Tensor, softcap: float | None, coefficients: Tensor) -> Compute:
    """A head whose rewards are the probability of each of K tokens among them, and of all K in the vocabulary.

    `rows` (K, H) are the rows of these tokens in the language-model head `vocabulary` (V, H), which may be of any
    floating type. The score weights the rewards by `coefficients` (K + 1,).
    """

    def compute(hidden: Tensor, index: Tensor, lengths: Tensor) -> HeadOutput:
        hidden = hidden.float()
        logits = in_blocks(partial(_logits, rows, softcap), hidden)
        mass = (logits.logsumexp(dim=1) - log_normalizers(vocabulary, softcap, hidden)).exp()[:, None]
        rewards = torch.cat((logits.softmax(dim=1), mass), dim=1)[index]
        return HeadOutput(rewards @ coefficients, rewards, _no_gates(rewards), _none(hidden))

    return compute


def log_normalizers(vocabulary: Tensor, softcap: float | None, hidden: Tensor) -> Tensor:
    """The logarithm (R,) of the sum of exp(logit) over the vocabulary (V, H), for hidden states (R, H) in float32.

    It is taken a part of the vocabulary at a time: the whole matrix in float32 may be gigabytes.
    """

    def of_part(rows: Tensor, block: Tensor) -> Tensor:
        return _logits(rows, softcap, block).logsumexp(dim=1)

    parts = [in_blocks(partial(of_part, part.float()), hidden) for part in vocabulary.split(_VOCABULARY_PART)]
    return torch.stack(parts, dim=1).logsumexp(dim=1)


def target_logits(
    vocabulary: Tensor, softcap: float | None, hidden: Tensor, index: Tensor, targets: Tensor
) -> Tensor:
    """The logits (N,) of the tokens `targets` (N,) for the hidden states hidden[index], of (R, H) in float32."""

    def products(at: Tensor, tokens: Tensor) -> Tensor:
        logits = (hidden.index_select(0, at) * vocabulary.index_select(0, tokens).float()).sum(dim=1)
        return _capped(logits, softcap)

    return in_blocks(products, index, targets)


def summed(factor: float, mean: bool) -> Compute:
    """A head whose reward is `factor` times the sum, or mean, of one number for each position that is read."""

    def compute(numbers: Tensor, index: Tensor, lengths: Tensor) -> HeadOutput:
        how = "mean" if mean else "sum"
        # unsafe: a check of the lengths would wait for the device
        total = torch.segment_reduce(numbers[index, 0], how, lengths=lengths, unsafe=True)
        rewards = (factor * total)[:, None]
        return HeadOutput(rewards[:, 0], rewards, _no_gates(rewards), _none(rewards))

    return compute


def better_of_two(layers: Layers) -> Compute:
    """PairRM's head: the probability that the first of two responses is better, from the values of both.

    Source: DebertaV2PairRM of llm_blender. A value is that of the hidden states of the question and of a response, at
    the tokens before them.
    """

    def compute(hidden: Tensor, index: Tensor, lengths: Tensor) -> HeadOutput:
        question, first, second = hidden.float()[index].view(len(lengths), 3, -1).unbind(dim=1)
        sides = (torch.cat((question, response), dim=1) for response in (first, second))
        value, other = (in_blocks(partial(through, layers), side) for side in sides)
        rewards = (value - other).sigmoid()
        return HeadOutput(rewards[:, 0], rewards, _no_gates(rewards), _none(rewards))

    return compute


def of_tokens(factor: float) -> Compute:
    """A head that returns `factor` times one number for each position that is read, as steps, and no rewards yet.

    `step_sums.accumulated` makes the rewards of them.
    """

    def compute(numbers: Tensor, index: Tensor, lengths: Tensor) -> HeadOutput:
        rewards = numbers.new_zeros(len(lengths), len(STEP_REWARDS))
        return HeadOutput(rewards[:, 0], rewards, _no_gates(rewards), factor * numbers[index, 0])

    return compute


def odds(rows: Tensor, softcap: float | None) -> Compute:
    """A head whose reward is the probability of the first of two tokens.

    `rows` (2, H) are the rows of these tokens in the language-model head.
    """

    def compute(hidden: Tensor, index: Tensor, lengths: Tensor) -> HeadOutput:
        first = _first_of_two(rows, softcap, hidden.float())[index]
        return HeadOutput(first[:, 0], first, _no_gates(first), _none(first))

    return compute


def step_odds(rows: Tensor, softcap: float | None) -> Compute:
    """A process model's head: `odds` of every step."""
    return step_rewards(partial(_first_of_two, rows, softcap))


def step_labels(layers: Layers) -> Compute:
    """A process model's head whose last layer has two labels: the probability of the second one at every step."""
    return step_rewards(lambda hidden: in_blocks(partial(through, layers), hidden).softmax(dim=1)[:, 1:])


def step_values(layers: Layers) -> Compute:
    """A process model's head whose last layer has one value: the sigmoid of it at every step."""
    return step_rewards(lambda hidden: in_blocks(partial(through, layers), hidden).sigmoid())


def step_rewards(reward: Callable[[Tensor], Tensor]) -> Compute:
    """A process model's head, from the reward (R, 1) of steps with hidden states (R, H).

    The rewards of a candidate are the mean (the score), minimum, product and last of those of its steps.
    """

    def compute(hidden: Tensor, index: Tensor, lengths: Tensor) -> HeadOutput:
        steps = reward(hidden.float())[index, 0]
        # unsafe: a check of the lengths would wait for the device
        reduced = [
            torch.segment_reduce(steps, how, lengths=lengths, unsafe=True) for how in ("mean", "min", "prod")
        ]
        rewards = torch.stack([*reduced, steps[lengths.cumsum(0) - 1]], dim=1)
        return HeadOutput(rewards[:, 0], rewards, _no_gates(rewards), steps)

    return compute


def _first_of_two(rows: Tensor, softcap: float | None, hidden: Tensor) -> Tensor:
    return in_blocks(partial(_logits, rows, softcap), hidden).softmax(dim=1)[:, :1]


def _logits(rows: Tensor, softcap: float | None, hidden: Tensor) -> Tensor:
    return _capped(F.linear(hidden, rows), softcap)


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def logit(rows: Tensor, softcap: float | None) -> Layers:
    """One layer: the logits (R, K) of the tokens whose rows in the language-model head are given, (K, H)."""
    return [partial(_logits, rows, softcap)]


def relu_mlp(tensors: Tensors, names: Sequence[str]) -> Layers:
    """Linear layers of these names with a ReLU between consecutive ones."""
    return interleaved(tensors, names, F.relu)


def interleaved(tensors: Tensors, names: Sequence[str], between: Callable[[Tensor], Tensor]) -> Layers:
    """Linear layers of these names with a function between consecutive ones."""
    layers: list[Callable[[Tensor], Tensor]] = []
    for name in names:
        layers += [between, _linear(tensors, name)]
    return layers[1:]


def normalized(shift: Tensor | float, variance: Tensor) -> Callable[[Tensor], Tensor]:
    """A layer that subtracts `shift` and divides by the standard deviation, as safe-rlhf's Normalizer."""
    return lambda x: (x - shift) / (variance.sqrt() + 1e-8)


def through(layers: Layers, hidden: Tensor) -> Tensor:
    """Apply layers one after the other to hidden states (R, H)."""
    for layer in layers:
        hidden = layer(hidden)
    return hidden


def _linear(tensors: Tensors, name: str) -> Callable[[Tensor], Tensor]:
    return partial(F.linear, weight=tensors[f"{name}.weight"], bias=tensors.get(f"{name}.bias"))


def _batch_norm(tensors: Tensors, name: str) -> Callable[[Tensor], Tensor]:
    mean, variance, weight, bias = (
        tensors[f"{name}.{field}"] for field in ("running_mean", "running_var", "weight", "bias")
    )
    return lambda x: F.batch_norm(x, mean, variance, weight, bias)


def _softmax_gate(layers: Layers, temperature: float, scale: Tensor, hidden: Tensor) -> Tensor:
    return F.softmax(through(layers, hidden) / temperature, dim=1) * scale


def _no_gates(rewards: Tensor) -> Tensor:
    return rewards.new_empty(len(rewards), 0)


def _none(hidden: Tensor) -> Tensor:
    return hidden.new_empty(0)
