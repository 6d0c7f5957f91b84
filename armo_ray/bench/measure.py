"""Seconds, bytes and FLOP/s. On CUDA the wall clock around a synchronize; on a CPU one thread's CPU time."""

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
CLOCKS = {"cuda": "wall clock, synchronized", "cpu": "CPU time of the process, one thread"}
_MATMUL_SIZES = {"cuda": 8192, "cpu": 1024}
_MATMUL_ROUNDS = {"cuda": 30, "cpu": 15}


def timed(function: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What a function returns, and the seconds it took on the device."""
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
    """FLOP/s of a dense square matrix product: what this device gives to plain torch, measured now."""
    size = _MATMUL_SIZES.get(device.type, 1024)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    taken = [timed(lambda: torch.mm(a, b), device)[1] for _ in range(_MATMUL_ROUNDS.get(device.type, 5))]
    return 2 * size**3 / statistics.median(taken[1:])


def with_peak(function: Callable[[], T], device: torch.device) -> tuple[T, int | None]:
    """What a function returns, and how far memory rose above what was in use before; None where untold."""
    before = _reset_peak(device)
    result = function()
    after = _peak(device)
    return result, None if before is None or after is None else max(0, after - before)


def _reset_peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # what the heap keeps would hide a rise
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    except OSError:
        return None
    return _status("VmRSS")


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int | None:
    """A figure of /proc/self/status in bytes, None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), None)
