"""Row-wise functions, computed in blocks of a fixed shape."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

BLOCK_ROWS = 64


def in_blocks(function: Callable[..., torch.Tensor], *rows: torch.Tensor) -> torch.Tensor:
    """`function` applied to tensors (R, ...) in padded blocks of BLOCK_ROWS rows.

    With a fixed shape, the result of a row does not depend on the number of rows: matrix products of other shapes
    round differently.
    """
    count = len(rows[0])
    padded = (F.pad(x, (0, 0) * (x.dim() - 1) + (0, -count % BLOCK_ROWS)) for x in rows)
    blocks = zip(*(torch.split(x, BLOCK_ROWS) for x in padded), strict=True)
    return torch.cat([function(*block) for block in blocks]).narrow(0, 0, count)
