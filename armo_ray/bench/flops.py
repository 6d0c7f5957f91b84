"""Floating-point operations of the decoder: 2 a linear parameter and token, 4 a query's head dimension and key.

Embeddings, norms, activations and the head are left out: together they are less than 0.1 % of an 8B model.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from armo_ray.engine.packing import Ids, Index, make_packs


class Shape(NamedTuple):
    """What of a decoder its operations depend on; parameters are those of one layer's linears."""

    layers: int
    linear: int
    keys: int  # of `linear`, the projections to keys and values
    heads: int
    head_dim: int


class Work(NamedTuple):
    tokens: int  # that go through the backbone, padding left out
    flops: int


def shape_of(backbone: Any) -> Shape:
    """The shape of a decoder of equal layers."""
    layer, config = backbone.layers[0], backbone.config
    linears = {n: m.weight.numel() for n, m in layer.named_modules() if isinstance(m, torch.nn.Linear)}
    keys = sum(size for name, size in linears.items() if name.endswith(("k_proj", "v_proj")))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(len(backbone.layers), sum(linears.values()), keys, config.num_attention_heads, head_dim)


def flops(shape: Shape, positions: Index, needed: Index | None = None) -> int:
    """Operations of tokens at these positions of their conversations.

    Args:
        needed: positions whose last hidden state is read; the last layer then computes the others' keys only.
    """
    tokens, context = len(positions), int(positions.sum()) + len(positions)
    attention = 4 * shape.heads * shape.head_dim
    layer = 2 * shape.linear * tokens + attention * context
    if needed is None:
        return shape.layers * layer
    reading = 2 * (shape.linear - shape.keys) * len(needed) + attention * (int(needed.sum()) + len(needed))
    return (shape.layers - 1) * layer + 2 * shape.keys * tokens + reading


def whole(shape: Shape, sequences: Sequence[Ids]) -> Work:
    """The work of every conversation on its own."""
    positions = np.concatenate([np.arange(len(ids)) for ids in sequences])
    return Work(len(positions), flops(shape, positions))


def packed(
    shape: Shape,
    sequences: Sequence[Ids],
    reads: Sequence[Sequence[int]],
    budget: int,
    share: bool,
    needed_rows: bool,
) -> Work:
    """The work of packs of at most `budget` tokens; a prompt whose answers fill several counts in each."""
    tokens = operations = 0
    for pack in make_packs(sequences, reads, budget, share):
        needed = pack.position_ids[np.unique(pack.read_index)] if needed_rows else None
        tokens += len(pack.position_ids)
        operations += flops(shape, pack.position_ids, needed)
    return Work(tokens, operations)


def floor(shape: Shape, sequences: Sequence[Ids], reads: Sequence[Sequence[int]]) -> int:
    """The least that any packing must do: everything shared, the last layer on the rows that are read."""
    return packed(shape, sequences, reads, sum(map(len, sequences)), True, True).flops
