"""The work of conversations, one by one and packed: tokens that go through the decoder, and their operations."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from armo_ray.engine.flops import Shape, flops, shape_of
from armo_ray.engine.packing import Ids, make_packs

__all__ = ["Shape", "Work", "floor", "flops", "packed", "shape_of", "whole"]


class Work(NamedTuple):
    tokens: int  # that go through the backbone, padding left out
    flops: int


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
