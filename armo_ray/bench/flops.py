"""The work for conversations, one by one or packed: tokens computed by the decoder, and their operations."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from armo_ray.engine.flops import Shape, flops, shape_of
from armo_ray.engine.packing import Ids, make_packs

__all__ = ["Shape", "Work", "floor", "flops", "packed", "shape_of", "whole"]


class Work(NamedTuple):
    """The work of the decoder."""

    tokens: int  # tokens computed, without padding
    flops: int


def whole(shape: Shape, sequences: Sequence[Ids]) -> Work:
    """The work if every conversation is computed by itself."""
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
    """The work with packs of at most `budget` tokens; a prompt whose responses fill several packs counts in each."""
    tokens = operations = 0
    for pack in make_packs(sequences, reads, budget, share):
        needed = pack.position_ids[np.unique(pack.read_index)] if needed_rows else None
        tokens += len(pack.position_ids)
        operations += flops(shape, pack.position_ids, needed)
    return Work(tokens, operations)


def floor(shape: Shape, sequences: Sequence[Ids], reads: Sequence[Sequence[int]]) -> int:
    """The fewest operations for any packing: every prefix once, and the last layer only for rows that are read."""
    return packed(shape, sequences, reads, sum(map(len, sequences)), True, True).flops
