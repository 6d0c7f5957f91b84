"""Functions of rows, computed in blocks of one fixed shape."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

BLOCK_ROWS = 64


def in_blocks(function: Callable[..., torch.Tensor], *rows: torch.Tensor) -> torch.Tensor:
    """`function` of tensors (R, ...), row by row: matrix products round a row differently in other company."""
    count = len(rows[0])
    padded = (F.pad(x, (0, 0) * (x.dim() - 1) + (0, -count % BLOCK_ROWS)) for x in rows)
    blocks = zip(*(torch.split(x, BLOCK_ROWS) for x in padded), strict=True)
    return torch.cat([function(*block) for block in blocks])[:count]
