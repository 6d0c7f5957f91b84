"""The attention function that transformers calls in every layer, over the segments of a pack.

One `varlen_attn` call per layer on CUDA in bfloat16 or float16; one scaled-dot-product call per segment
elsewhere. Both gather the keys of a segment as prefix ++ own tokens and align the causal mask bottom-right.
"""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from armo_ray.engine.packing import Pack

NAME = "armo_packed"
_PARAMETERS = inspect.signature(varlen_attn).parameters
# torch 2.10 has is_causal, later versions window_size; the last two came with 2.12.
_VARLEN_OPTIONS: dict[str, Any] = (
    {"window_size": (-1, 0)} if "window_size" in _PARAMETERS else {"is_causal": True}
)
_VARLEN_OPTIONS |= {k: v for k, v in {"enable_gqa": True, "num_splits": 1}.items() if k in _PARAMETERS}
_REFUSED = ("sliding_window", "softcap", "s_aux")


@dataclass(frozen=True)
class Plan:
    """A pack's segments on the device of the model. `kv_index` is None where no key needs a gather."""

    cu_q: torch.Tensor  # (S + 1,) int32
    cu_k: torch.Tensor  # (S + 1,) int32
    max_q: int
    max_k: int
    kv_index: torch.Tensor | None  # (cu_k[-1],) int64
    segments: tuple[tuple[int, int, int, int], ...]  # q_start, q_stop, k_start, k_stop of each, on the host
    masks: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)  # built once for all layers

    def mask(self, num_q: int, num_k: int, device: torch.device) -> torch.Tensor:
        """Which of its keys each query sees: the last query sees all."""
        if (num_q, num_k) not in self.masks:
            seen = torch.ones(num_q, num_k, dtype=torch.bool, device=device).tril(num_k - num_q)
            self.masks[num_q, num_k] = seen
        return self.masks[num_q, num_k]

    @classmethod
    def of(cls, pack: Pack, device: torch.device) -> "Plan":
        q, k = pack.cu_q.tolist(), pack.cu_k.tolist()
        shared = k[-1] > q[-1]
        return cls(
            cu_q=to_device(pack.cu_q.astype("int32"), device),
            cu_k=to_device(pack.cu_k.astype("int32"), device),
            max_q=int((pack.cu_q[1:] - pack.cu_q[:-1]).max()),
            max_k=int((pack.cu_k[1:] - pack.cu_k[:-1]).max()),
            kv_index=to_device(pack.kv_index, device) if shared else None,
            segments=tuple(zip(q, q[1:], k, k[1:], strict=False)),
        )


def to_device(array: Any, device: torch.device) -> torch.Tensor:
    """A numpy array on the device; through pinned memory on CUDA, so that the copy waits for nothing."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, heads, T, head_dim)
    key: torch.Tensor,  # (1, kv_heads, T, head_dim)
    value: torch.Tensor,
    attention_mask: None,
    plan: Plan,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of every segment over its own keys; returns (1, T, heads, head_dim)."""
    if refused := [name for name in _REFUSED if options.get(name) is not None]:
        raise NotImplementedError(
            f"{type(module).__name__} asks for {', '.join(refused)}: packs do not support it"
        )
    if (index := plan.kv_index) is not None:
        key, value = key.index_select(2, index), value.index_select(2, index)
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        attend: Any = varlen_attn
        out = attend(q, k, v, plan.cu_q, plan.cu_k, plan.max_q, plan.max_k, scale=scaling, **_VARLEN_OPTIONS)
        return out[None], None
    return _by_segment(query, key, value, plan, scaling), None


def _by_segment(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: Plan, scaling: float | None
) -> torch.Tensor:
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    grouped = query.shape[1] != key.shape[1]
    for q0, q1, k0, k1 in plan.segments:
        num_q, num_k = q1 - q0, k1 - k0
        mask = plan.mask(num_q, num_k, query.device) if 1 < num_q < num_k else None
        attended = F.scaled_dot_product_attention(
            query[:, :, q0:q1],
            key[:, :, k0:k1],
            value[:, :, k0:k1],
            attn_mask=mask,
            is_causal=num_q == num_k,
            scale=scaling,
            enable_gqa=grouped,
        )
        out[:, q0:q1] = attended.transpose(1, 2)
    return out


AttentionInterface.register(NAME, packed_attention)
