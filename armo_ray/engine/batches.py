"""Batches of whole conversations, padded to one length: the input of encoders.

In an encoder a token attends to the tokens after it too, so two conversations share nothing, however they begin. They
are sorted by length, so that a batch holds little padding. Needs no torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from armo_ray.engine.packing import Ids, Index

STEP = 64  # batches of a fixed shape are padded to multiples of it


@dataclass(frozen=True)
class Batch:
    """The input of one forward pass of an encoder: B rows of L tokens."""

    input_ids: Index  # (B * L,) row by row, 0 after the end of a conversation
    lengths: Index  # (B,) tokens of each row without padding; 0 for a row that is only padding
    sequences: Index  # (C,) indices of the caller's sequences in the first rows
    read_index: Index  # (cu_read[-1],) the tokens of the batch that are read
    cu_read: Index  # (C + 1,) sequence c is read at read_index[cu_read[c]:cu_read[c + 1]]
    num_tokens: int  # number of tokens that are not padding

    @property
    def width(self) -> int:
        """The number L of tokens in a row."""
        return len(self.input_ids) // len(self.lengths)


def make_batches(
    sequences: Sequence[Ids], reads: Sequence[Sequence[int]], token_budget: int, fixed_size: bool = False
) -> Iterator[Batch]:
    """Batches that together hold every sequence once, the longest first.

    Args:
        sequences: token ids of whole conversations, none of them empty.
        reads: for each sequence, the positions that a head reads, in the head's order.
        token_budget: maximum number of tokens in a batch with its padding; a longer sequence gets its own batch.
        fixed_size: give a sequence the same shape of batch whatever the others are: its length determines the width,
            a multiple of STEP, and the width the number of rows.
    """
    widths = np.array([len(ids) for ids in sequences], np.int64)
    if fixed_size:
        widths = -(-widths // STEP) * STEP
    order = np.argsort(-widths, kind="stable")
    while len(order):
        width = int(widths[order[0]])
        rows = max(1, token_budget // width)
        chosen = order[:rows]
        if fixed_size:
            chosen = chosen[widths[chosen] == width]
        order = order[len(chosen) :]
        yield _build(chosen, sequences, reads, (rows if fixed_size else len(chosen), width))


def _build(
    chosen: Index, sequences: Sequence[Ids], reads: Sequence[Sequence[int]], shape: tuple[int, int]
) -> Batch:
    ids, lengths = np.zeros(shape, np.int64), np.zeros(shape[0], np.int64)
    for row, i in enumerate(chosen):
        lengths[row] = len(sequences[i])
        ids[row, : lengths[row]] = sequences[i]
    read = [row * shape[1] + np.asarray(reads[i], np.int64) for row, i in enumerate(chosen)]
    return Batch(
        input_ids=ids.ravel(),
        lengths=lengths,
        sequences=chosen,
        read_index=np.concatenate(read),
        cu_read=np.cumsum([0, *map(len, read)]),
        num_tokens=int(lengths.sum()),
    )
