"""Measurement of seconds, bytes and FLOP/s. Time is synchronized wall time on CUDA, and CPU time on a CPU."""

import ctypes
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
CLOCKS = {"cuda": "wall clock, synchronized", "cpu": "CPU time of the process, one thread"}
LEAST_S = 1.0  # for a measurement of FLOP/s
_SIZES = {"cuda": 8192, "cpu": 1024}  # of square matrices


def timed(function: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """The result of a function, and the seconds that it took on the device."""
    if device.type == "cpu":
        started = time.process_time()
        result = function()
        return result, time.process_time() - started
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    result = function()
    torch.cuda.synchronize(device)
    return result, time.perf_counter() - started


def seconds_each(function: Callable[[], object], device: torch.device, least: float) -> float:
    """Mean seconds of a call, over calls back to back that together take at least `least` seconds.

    A GPU keeps its highest clock for a fraction of a second only, which a shorter measurement would report.
    """
    count = 0
    seconds = timed(function, device)[1]  # the first call also allocates
    while seconds < least:
        count = 1 if count == 0 else max(2 * count, math.ceil(1.1 * count * least / max(seconds, 1e-6)))
        seconds = timed(partial(_repeat, function, count), device)[1]
    return seconds / max(count, 1)


def _repeat(function: Callable[[], object], count: int) -> None:
    for _ in range(count):
        function()


def matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a dense square matrix product with plain torch, measured now for at least a second."""
    size = _SIZES[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds_each(lambda: torch.mm(a, b), device, LEAST_S)


def layer_flops(layer: torch.nn.Module, rows: int) -> float:
    """FLOP/s of the products of a decoder layer's linear modules with this many rows, measured like `matmul_flops`."""
    weights = [m.weight for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {
        width: torch.randn(rows, width, device=weights[0].device).to(weights[0].dtype)
        for width in {weight.shape[1] for weight in weights}
    }

    @torch.inference_mode()
    def products() -> None:
        for weight in weights:
            torch.mm(inputs[weight.shape[1]], weight.T)

    operations = 2 * rows * sum(weight.numel() for weight in weights)
    return operations / seconds_each(products, weights[0].device, LEAST_S)


def with_peak(function: Callable[[], T], device: torch.device) -> tuple[T, int | None]:
    """The result of a function, and the peak of memory in bytes above what was in use; None if not measurable."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return function(), torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # free memory in the heap would hide a rise
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    except (OSError, AttributeError):  # not Linux
        return function(), None
    before = _status_bytes("VmRSS")
    return function(), max(0, _status_bytes("VmHWM") - before)


def _status_bytes(name: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024
