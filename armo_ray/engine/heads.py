"""ArmoRM's head: 19 rewards of the last token, gated by the prompt, summed to one score. float32 throughout.

The released code runs it in the backbone's dtype, which in bfloat16 leaves 8 bits of a score; upcasting the
two hidden states that are read costs nothing and removes those ties.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from armo_ray.engine.blocks import in_blocks
from armo_ray.engine.checkpoint import HEAD_PREFIXES, Checkpoint


class HeadOutput(NamedTuple):
    score: torch.Tensor  # (C,)
    rewards: torch.Tensor  # (C, K)
    gating: torch.Tensor  # (C, K)


class ArmoHead:
    """The tensors of the head, named as in the checkpoint.

    Source: modeling_custom.py of RLHFlow/ArmoRM-Llama3-8B-v0.1. With h the final hidden states:
    rewards = W h[last], gating = softmax(MLP(h[gate]) / temperature) * logit_scale,
    score = sum((rewards @ T) * gating).
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], temperature: float) -> None:
        self.regression = tensors["regression_layer.weight"]  # (K, H)
        self.transform = tensors["reward_transform_matrix"]  # (K, K), rows are the input objectives
        depth = sum(name.startswith("gating.layers.") for name in tensors) // 2
        self.layers = [
            (tensors[f"gating.layers.{i}.weight"], tensors[f"gating.layers.{i}.bias"]) for i in range(depth)
        ]
        self.logit_scale = tensors["gating.logit_scale"]  # (1,)
        self.temperature = temperature

    @classmethod
    def read(cls, checkpoint: Checkpoint, device: torch.device) -> "ArmoHead":
        """The head of a checkpoint, on a device."""
        names = [name for name in checkpoint.tensors if name.startswith(HEAD_PREFIXES)]
        tensors = {name: torch.from_numpy(checkpoint.read(name)).to(device) for name in names}
        return cls(tensors, float(checkpoint.config["gating_temperature"]))

    def __call__(self, hidden: torch.Tensor, last: torch.Tensor, gate: torch.Tensor) -> HeadOutput:
        """Hidden states (R, H) that were read; `last` and `gate` (C,) say which of them are each candidate's."""
        hidden = hidden.float()
        rewards = in_blocks(lambda h: F.linear(h, self.regression), hidden)
        debiased = in_blocks(lambda r: r @ self.transform, rewards)
        gating = in_blocks(self._gating, hidden)[gate]
        return HeadOutput((debiased[last] * gating).sum(dim=1), rewards[last], gating)

    def _gating(self, hidden: torch.Tensor) -> torch.Tensor:
        for i, (weight, bias) in enumerate(self.layers):
            hidden = F.linear(F.relu(hidden) if i else hidden, weight, bias)
        return F.softmax(hidden / self.temperature, dim=1) * self.logit_scale


def find_gate(ids: npt.NDArray[np.int32], pattern: npt.NDArray[np.int32]) -> int:
    """The start of the last occurrence of `pattern` in `ids`, -1 where there is none."""
    starts = np.flatnonzero(ids[: max(0, len(ids) - len(pattern) + 1)] == pattern[0])
    for start in reversed(starts.tolist()):
        if np.array_equal(ids[start : start + len(pattern)], pattern):
            return int(start)
    return -1
