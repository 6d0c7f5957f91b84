"""Measurement of seconds, bytes and FLOP/s. Time is synchronized wall time on CUDA, and CPU time on a CPU."""

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
CLOCKS = {"cuda": "wall clock, synchronized", "cpu": "CPU time of the process, one thread"}
_MATMULS = {"cuda": (8192, 30), "cpu": (1024, 15)}  # size of the square matrices, number of products


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


def matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a dense square matrix product with plain torch, measured now."""
    size, times = _MATMULS[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = [timed(lambda: torch.mm(a, b), device)[1] for _ in range(times)]
    return 2 * size**3 / statistics.median(seconds[1:])


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
