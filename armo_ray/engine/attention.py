"""Attention over the segments of a pack.

On CUDA in bfloat16 or float16, `varlen_attn` computes all segments of a chunk in one call per layer; elsewhere, and
where `kernel_check` found that it fails, each segment takes one scaled-dot-product call. Both gather the keys of a
segment as prefix ++ own tokens and align the causal mask bottom-right.
"""

import inspect
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from armo_ray.engine.device import to_device
from armo_ray.engine.packing import Index, Pack

# Limit for the keys gathered at once: 1 GB of keys and values per layer of an 8B model. Long prompts with many short
# responses gather far more keys than they have tokens.
MAX_KEYS = 1 << 18
MAX_SEGMENTS = 65_535  # in a chunk: the kernel's limit
# Queries at once if attention weights are materialized: 64 MB in float32 for 16 heads and 4k keys.
SOFTCAP_ROWS = 256


class Rule(NamedTuple):
    """How a layer computes attention weights from queries and keys."""

    scaling: float | None = None  # by default head_dim ** -0.5
    window: int | None = None  # number of keys that a query sees, its own included; None: all up to its own
    softcap: float | None = None  # a logit s becomes softcap * tanh(s / softcap)


PLAIN = Rule()


@dataclass(frozen=True)
class Chunk:
    """Segments on the device of the model: queries [cu_q[s], cu_q[s+1]) see the keys [cu_k[s], cu_k[s+1])."""

    cu_q: torch.Tensor  # (S + 1,) int32
    cu_k: torch.Tensor  # (S + 1,) int32
    max_q: int  # length of the longest segment in queries
    max_k: int  # and in keys
    kv_index: torch.Tensor | None  # (cu_k[-1],) int64 tokens of the pack; None if they are the queries
    bounds: tuple[tuple[int, int, int, int], ...]  # q_start, q_stop, k_start, k_stop by segment, on the host
    masks: dict[tuple[int, int, int], torch.Tensor] = field(default_factory=dict)  # built once for all layers

    def mask(self, num_q: int, num_k: int, window: int | None, device: torch.device) -> torch.Tensor:
        """(num_q, num_k) bool, the keys that each query sees; the last query is the last key."""
        width, own = window or num_k, num_k - num_q
        if (num_q, num_k, width) not in self.masks:
            seen = torch.ones(num_q, num_k, dtype=torch.bool, device=device).tril(own).triu(own - width + 1)
            self.masks[num_q, num_k, width] = seen
        return self.masks[num_q, num_k, width]


@dataclass(frozen=True)
class Segments:
    """The segments of a pack, in chunks of one segment or of at most MAX_KEYS keys and MAX_SEGMENTS segments."""

    chunks: tuple[Chunk, ...]
    kernel: bool = True  # whether the kernel may be used

    @property
    def max_k(self) -> int:
        """The number of keys of the longest segment."""
        return max(chunk.max_k for chunk in self.chunks)

    @classmethod
    def of(cls, pack: Pack, device: torch.device, kernel: bool = True) -> "Segments":
        """The segments with every token of a pack as a query."""
        gathered = pack.cu_k[-1] > pack.cu_q[-1] or len(pack.cu_q) > MAX_SEGMENTS
        return cls._make(pack.cu_q, pack.cu_k, pack.kv_index if gathered else None, device, kernel)

    @classmethod
    def of_rows(cls, pack: Pack, rows: Index, device: torch.device, kernel: bool = True) -> "Segments":
        """One segment for each of the tokens `rows` (R,) of a pack, with the token as its only query."""
        segment = np.searchsorted(pack.cu_q, rows, side="right") - 1
        counts = pack.cu_k[segment + 1] - pack.cu_k[segment] - (pack.cu_q[segment + 1] - 1 - rows)
        cu_k = np.cumsum([0, *counts])
        within = np.arange(cu_k[-1]) - np.repeat(cu_k[:-1], counts)
        kv_index = pack.kv_index[np.repeat(pack.cu_k[segment], counts) + within]
        return cls._make(np.arange(len(rows) + 1), cu_k, kv_index, device, kernel)

    @classmethod
    def _make(
        cls, cu_q: Index, cu_k: Index, kv_index: Index | None, device: torch.device, kernel: bool
    ) -> "Segments":
        if kv_index is None:
            return cls((_chunk(cu_q, cu_k, None, device),), kernel)
        cuts = [0]
        for s in range(1, len(cu_k) - 1):
            if cu_k[s + 1] - cu_k[cuts[-1]] > MAX_KEYS or s - cuts[-1] == MAX_SEGMENTS:
                cuts.append(s)
        chunks = (
            _chunk(cu_q[a : b + 1], cu_k[a : b + 1], kv_index[cu_k[a] : cu_k[b]], device)
            for a, b in pairwise([*cuts, len(cu_k) - 1])
        )
        return cls(tuple(chunks), kernel)


def _chunk(cu_q: Index, cu_k: Index, kv_index: Index | None, device: torch.device) -> Chunk:
    cu_q, cu_k = cu_q - cu_q[0], cu_k - cu_k[0]
    q, k = cu_q.tolist(), cu_k.tolist()
    return Chunk(
        cu_q=to_device(cu_q.astype("int32"), device),
        cu_k=to_device(cu_k.astype("int32"), device),
        max_q=int(np.diff(cu_q).max()),
        max_k=int(np.diff(cu_k).max()),
        kv_index=None if kv_index is None else to_device(kv_index, device),
        bounds=tuple(zip(q, q[1:], k, k[1:], strict=False)),
    )


def attend(
    query: torch.Tensor,  # (Q, heads, head_dim)
    key: torch.Tensor,  # (T, kv_heads, head_dim)
    value: torch.Tensor,
    segments: Segments,
    rule: Rule = PLAIN,
) -> torch.Tensor:
    """Attention of every segment over its own keys; returns (Q, heads, head_dim)."""
    if rule.window is not None and rule.window >= segments.max_k:
        rule = rule._replace(window=None)
    by_kernel = segments.kernel and kernel_takes(query, rule)
    attend_chunk = _by_kernel if by_kernel else _by_segment
    outputs = []
    sizes = [chunk.bounds[-1][1] for chunk in segments.chunks]
    for rows, chunk in zip(query.split(sizes), segments.chunks, strict=True):
        k, v = key, value
        if chunk.kv_index is not None:
            k, v = key.index_select(0, chunk.kv_index), value.index_select(0, chunk.kv_index)
        outputs.append(attend_chunk(rows, k, v, chunk, rule))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


@cache
def _kernel() -> tuple[Callable[..., Any], Set[str]]:
    """torch's kernel for segments of many lengths, and the names of its parameters."""
    from torch.nn.attention.varlen import varlen_attn  # imports the compiler, which takes 2 s

    return varlen_attn, inspect.signature(varlen_attn).parameters.keys()


def kernel_takes(query: torch.Tensor, rule: Rule) -> bool:
    """Whether the kernel computes this kind of attention for queries (Q, heads, head_dim) like these."""
    half, head_dim = query.dtype in (torch.bfloat16, torch.float16), query.shape[-1]
    if not (has_kernel(query.device) and half and head_dim % 8 == 0 and head_dim <= 256):
        return False
    return rule.softcap is None and (rule.window is None or "window_size" in _kernel()[1])


def has_kernel(device: torch.device) -> bool:
    """Whether torch has the kernel for a kind of device."""
    return device.type == "cuda"


def _by_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, chunk: Chunk, rule: Rule
) -> torch.Tensor:
    kernel, parameters = _kernel()
    # torch 2.10 has is_causal and no scale, later versions window_size and scale; the last two came with 2.12.
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in parameters else {"is_causal": True}
    options |= {k: v for k, v in {"enable_gqa": True, "num_splits": 1}.items() if k in parameters}
    own, scaling = query.shape[-1] ** -0.5, rule.scaling
    if rule.window is not None:
        options["window_size"] = (rule.window - 1, 0)
    if "scale" in parameters:
        options["scale"] = scaling
    elif scaling not in (None, own):
        query = query * (scaling / own)
    q, k, v = query.contiguous(), key.contiguous(), value.contiguous()
    out: torch.Tensor = kernel(q, k, v, chunk.cu_q, chunk.cu_k, chunk.max_q, chunk.max_k, **options)
    return out


def _by_segment(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, chunk: Chunk, rule: Rule
) -> torch.Tensor:
    out = query.new_empty(query.shape[0], query.shape[1], value.shape[2])
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))  # (1, heads, T, head_dim)
    for q0, q1, k0, k1 in chunk.bounds:
        num_q, num_k = q1 - q0, k1 - k0
        windowed = (rule.window or num_k) < num_k
        masked = windowed or 1 < num_q < num_k or rule.softcap is not None
        mask = chunk.mask(num_q, num_k, rule.window, query.device) if masked else None
        own = q[:, :, q0:q1], k[:, :, k0:k1], v[:, :, k0:k1]
        if rule.softcap is not None and mask is not None:
            attended = _softcapped(*own, mask, rule.scaling, rule.softcap)
        else:
            attended = F.scaled_dot_product_attention(
                *own,
                attn_mask=mask,
                is_causal=mask is None and num_q == num_k,
                scale=rule.scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        out[q0:q1] = attended[0].transpose(0, 1)
    return out


def _softcapped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """Attention (1, heads, Q, head_dim) with softcapped logits, computed for SOFTCAP_ROWS queries at a time."""
    groups, scaling = query.shape[1] // key.shape[1], scaling or query.shape[-1] ** -0.5
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    outputs = []
    for rows, seen in zip(query.split(SOFTCAP_ROWS, dim=2), mask.split(SOFTCAP_ROWS), strict=True):
        scores = softcap * torch.tanh(rows @ key.transpose(2, 3) * scaling / softcap)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1, dtype=torch.float32)
        outputs.append(weights.to(value.dtype) @ value)
    return torch.cat(outputs, dim=2)
