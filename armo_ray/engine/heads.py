"""ArmoRM's head: 19 rewards of the last token, gated by the prompt, summed to one score. float32 throughout.

The released code runs it in the backbone's dtype, which in bfloat16 leaves 8 bits of a score; upcasting the
two hidden states that are read costs nothing and removes those ties.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from armo_ray.engine.checkpoint import Checkpoint

BLOCK_ROWS = 64


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

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        def read(name: str) -> torch.Tensor:
            return torch.from_numpy(checkpoint.read(name)).to(device)

        depth = int(checkpoint.config["gating_n_hidden"])
        self.regression = read("regression_layer.weight")  # (K, H)
        self.transform = read("reward_transform_matrix")  # (K, K), rows are the input objectives
        self.layers = [
            (read(f"gating.layers.{i}.weight"), read(f"gating.layers.{i}.bias")) for i in range(depth + 1)
        ]
        self.logit_scale = read("gating.logit_scale")  # (1,)
        self.temperature = float(checkpoint.config["gating_temperature"])

    def __call__(
        self, last: torch.Tensor, gate: torch.Tensor, last_of: torch.Tensor, gate_of: torch.Tensor
    ) -> HeadOutput:
        """Hidden states (L, H) and (G, H); `last_of` and `gate_of` (C,) say which of them each candidate reads."""
        rewards = _in_blocks(lambda h: F.linear(h, self.regression), last.float())
        debiased = _in_blocks(lambda r: r @ self.transform, rewards)
        gating = _in_blocks(self._gating, gate.float())[gate_of]
        return HeadOutput((debiased[last_of] * gating).sum(dim=1), rewards[last_of], gating)

    def _gating(self, hidden: torch.Tensor) -> torch.Tensor:
        for i, (weight, bias) in enumerate(self.layers):
            hidden = F.linear(F.relu(hidden) if i else hidden, weight, bias)
        return F.softmax(hidden / self.temperature, dim=1) * self.logit_scale


def _in_blocks(function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """`function` on blocks of one fixed shape: matrix products round a row differently in other company."""
    padded = F.pad(rows, (0, 0, 0, -len(rows) % BLOCK_ROWS))
    return torch.cat([function(block) for block in torch.split(padded, BLOCK_ROWS)])[: len(rows)]


def find_gate(ids: npt.NDArray[np.int32], pattern: npt.NDArray[np.int32]) -> int:
    """The start of the last occurrence of `pattern` in `ids`, -1 where there is none."""
    starts = np.flatnonzero(ids[: max(0, len(ids) - len(pattern) + 1)] == pattern[0])
    for start in reversed(starts.tolist()):
        if np.array_equal(ids[start : start + len(pattern)], pattern):
            return int(start)
    return -1
