"""Floating-point operations of the backbone.

Linear layers take 2 per parameter and token; attention takes 4 per head dimension, query and key. Embeddings, norms,
activations and the head are left out: together they are less than 0.1 % of an 8B model. Of DeBERTa, so are the terms of
its attention for relative positions, about 8 % of the large one.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from armo_ray.engine.fp8 import Fp8Linear
from armo_ray.engine.packing import Index
from armo_ray.engine.peaks import peak_of


class Shape(NamedTuple):
    """The sizes of a decoder that determine its operations."""

    layers: int
    linear: int  # parameters of one layer's linear modules
    keys: int  # how many of them project to keys and values
    heads: int
    head_dim: int


def shape_of(backbone: Any) -> Shape:
    """The shape of a decoder whose layers are all equal."""
    layer, config = backbone.layers[0], backbone.config
    linears = {
        name: module.weight.numel()
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear | Fp8Linear)
    }
    keys = sum(size for name, size in linears.items() if name.endswith(("k_proj", "v_proj")))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(len(backbone.layers), sum(linears.values()), keys, config.num_attention_heads, head_dim)


def flops(shape: Shape, positions: Index, needed: Index | None = None) -> int:
    """Operations for tokens at these positions (T,) of their conversations.

    Args:
        needed: positions whose final hidden state is read. For other tokens, the last layer then computes only keys
            and values.
    """
    tokens, context = len(positions), int(positions.sum()) + len(positions)
    attention = 4 * shape.heads * shape.head_dim
    layer = 2 * shape.linear * tokens + attention * context
    if needed is None:
        return shape.layers * layer
    reading = 2 * (shape.linear - shape.keys) * len(needed) + attention * (int(needed.sum()) + len(needed))
    return (shape.layers - 1) * layer + 2 * shape.keys * tokens + reading


def peak_flops(devices: Iterable[torch.device], dtype: str) -> float | None:
    """Peak operations per second of all devices together for a dtype; None if one of them is not known."""
    peaks = [peak_of(torch.cuda.get_device_name(d), dtype) if d.type == "cuda" else None for d in devices]
    numbers = [peak for peak in peaks if peak is not None]
    return sum(numbers) if len(numbers) == len(peaks) else None
