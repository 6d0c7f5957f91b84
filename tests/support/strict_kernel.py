"""Attention over segments on a CPU that takes and refuses what torch's kernel for CUDA takes and refuses."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from armo_ray.engine import attention, kernel_check

# parameters by name, as two versions of torch have them
PARAMETERS = {
    "torch-2.11": {"query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale", "window_size"},
}
PARAMETERS["torch-2.13"] = PARAMETERS["torch-2.11"] | {"enable_gqa", "num_splits"}


class StrictKernel:
    """Counts its calls. Its output starts as NaN, so that a row that no segment computes cannot be overlooked."""

    def __init__(self, version: str) -> None:
        self.parameters = PARAMETERS[version]
        self.calls = 0

    def use(self, patch: pytest.MonkeyPatch) -> "StrictKernel":
        """Put this kernel in place of torch's, for tensors on a CPU."""
        patch.setattr(attention, "_kernel", lambda: (self, self.parameters))
        for module in (attention, kernel_check):
            patch.setattr(module, "has_kernel", lambda device: True)
        return self

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_q: torch.Tensor,
        cu_k: torch.Tensor,
        max_q: int,
        max_k: int,
        **options: Any,
    ) -> torch.Tensor:
        self.calls += 1
        assert options.keys() <= self.parameters
        check_states(query, key, value)
        check_offsets(cu_q, query, max_q)
        check_offsets(cu_k, key, max_k)
        assert "enable_gqa" not in self.parameters or options["enable_gqa"] or query.shape[1] == key.shape[1]
        left, right = options["window_size"]
        assert right == 0, "not causal"
        scale = options["scale"] or query.shape[-1] ** -0.5
        out = torch.full_like(query, torch.nan)
        for (q0, q1), (k0, k1) in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True):
            out[q0:q1] = self.segment(query[q0:q1], key[k0:k1], value[k0:k1], left, scale)
        return out

    def segment(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, left: int, scale: float
    ) -> torch.Tensor:
        """One segment (Q, heads, head_dim) in float32; its last query is its last key."""
        groups = query.shape[1] // key.shape[1]
        key, value = (x.float().repeat_interleave(groups, 1) for x in (key, value))
        logits = torch.einsum("qhd,khd->hqk", query.float(), key) * scale
        weights = logits.masked_fill(~self.seen(len(query), len(key), left), -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, value).to(query.dtype)

    def seen(self, num_q: int, num_k: int, left: int) -> torch.Tensor:
        own = num_k - num_q
        seen = torch.ones(num_q, num_k, dtype=torch.bool).tril(own)
        return seen if left < 0 else seen.triu(own - left)


class TopLeftKernel(StrictKernel):
    """Aligns the causal mask with the first key, as some kernels of torch did."""

    def seen(self, num_q: int, num_k: int, left: int) -> torch.Tensor:
        return torch.ones(num_q, num_k, dtype=torch.bool).tril()


def check_states(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    for states in (query, key, value):
        assert states.dtype in (torch.bfloat16, torch.float16), f"{states.dtype}"
        assert states.is_contiguous(), "not contiguous"
        assert states.shape[-1] <= 256, "head_dim"
        assert states.shape[-1] % 8 == 0, "head_dim"
    assert key.shape == value.shape


def check_offsets(offsets: torch.Tensor, states: torch.Tensor, longest: int) -> None:
    assert offsets.dtype == torch.int32, f"offsets of {offsets.dtype}"
    assert offsets.device == states.device, "offsets on another device"
    assert len(offsets) - 1 <= 65_535, "too many segments"
    assert int(offsets[0]) == 0
    assert int(offsets[-1]) == len(states), "keys of another pack, or not gathered"
    assert int(offsets.diff().max()) == longest, "the longest segment has another length"
