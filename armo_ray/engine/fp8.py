"""Row-wise W8A8 in float8 e4m3: weights are scaled by output channel at load, activations by token in each call.

`torch._scaled_mm` computes it with Hopper's float8 units, and on a CPU for tests. A scale maps the largest magnitude
of a row to 448, the largest e4m3 number. Products are accumulated in the fastest way: in float32 on a CPU, and on
Hopper in tensor cores, which keep fewer bits.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import nn

E4M3_MAX = 448.0
MULTIPLE = 16  # the kernel needs both dimensions of a weight to be multiples of this


class Quantized(NamedTuple):
    """Rows (R, K) in float8, their scales (R, 1), and the shape (..., K) and dtype of the tensor that they were."""

    rows: torch.Tensor
    scale: torch.Tensor
    shape: torch.Size
    dtype: torch.dtype


Input = torch.Tensor | Quantized


class Fp8Linear(nn.Module):
    """A linear layer with a float8 weight (N, K) and a float32 scale for each row of it."""

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        quantized, scale = quantize(weight)
        self.register_buffer("weight", quantized)
        self.register_buffer("scale", scale.T)  # (1, N)
        self.register_buffer("bias", bias)

    def forward(self, x: Input) -> torch.Tensor:
        """Maps (..., K) to (..., N), in the dtype of x."""
        rows, scale, shape, dtype = x if isinstance(x, Quantized) else _quantized(x)
        out = _product(rows, self.weight, scale, self.scale, dtype).view(*shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def quantized_once(x: torch.Tensor, *linears: nn.Module) -> Input:
    """The input (..., K) of several layers: rounded to float8 here, if that is what each of them would do."""
    return _quantized(x) if all(isinstance(linear, Fp8Linear) for linear in linears) else x


def _quantized(x: torch.Tensor) -> Quantized:
    return Quantized(*quantize(x.reshape(-1, x.shape[-1])), x.shape, x.dtype)


def _product(
    rows: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    weight_scale: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Rows (R, K) times a weight (N, K), with the scale of each row of both."""
    if rows.device.type == "cpu" and not _cpu_scales_rows():
        return (rows.float() @ weight.float().T * scale * weight_scale).to(dtype)
    scales = {"scale_a": scale, "scale_b": weight_scale}
    return torch._scaled_mm(rows, weight.T, out_dtype=dtype, use_fast_accum=True, **scales)


@cache
def _cpu_scales_rows() -> bool:
    """Whether torch has this product for CPUs with a scale for each row; 2.11 has it with one for all only."""
    one, scale = torch.ones(MULTIPLE, MULTIPLE).to(torch.float8_e4m3fn), torch.ones(MULTIPLE, 1)
    try:
        torch._scaled_mm(one, one.T, scale_a=scale, scale_b=scale.T, out_dtype=torch.float32)
    except (RuntimeError, ValueError):
        return False
    return True


def quantize(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (R, K) as float8, and the float32 scale (R, 1) that restores them."""
    rows = rows.float()
    scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / E4M3_MAX
    return (rows / scale).to(torch.float8_e4m3fn), scale


def quantize_(backbone: nn.Module, device: torch.device | None = None) -> None:
    """Replace the linear layers of a decoder in place, one after the other, by Fp8Linear on `device`.

    Without a device, weights stay where they are. Layers with a dimension that is not a multiple of 16, embeddings
    and norms are not replaced.
    """
    # a list of all modules would keep every replaced weight alive until the end
    for module in [m for m in backbone.modules() if not isinstance(m, nn.Linear)]:
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and not any(width % MULTIPLE for width in child.weight.shape):
                bias = None if child.bias is None else child.bias.detach().to(device)
                setattr(module, name, Fp8Linear(child.weight.detach().to(device), bias))
