"""Code that depends on the device: copies, timing and memory."""

import ctypes
import gc
import os
import time
from contextlib import suppress
from typing import Any

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def to_device(array: Any, device: torch.device) -> torch.Tensor:
    """A numpy array on the device. On CUDA it is copied from pinned memory, so that the host does not wait."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Stopwatch:
    """Sum of the seconds on a device from each odd mark (first, third, ...) to the next. Only `seconds` waits."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self.marks: list[Any] = []

    def mark(self) -> None:
        """Start or stop the stopwatch at this point of the device's work."""
        if self.stream is None:
            self.marks.append(time.perf_counter())
        else:
            self.marks.append(self.stream.record_event(torch.cuda.Event(enable_timing=True)))

    def seconds(self) -> float:
        """The sum so far. Waits until the device reached the last mark."""
        pairs = zip(self.marks[::2], self.marks[1::2], strict=True)
        if self.stream is None:
            return float(sum(stop - start for start, stop in pairs))
        self.stream.synchronize()
        return float(sum(start.elapsed_time(stop) for start, stop in pairs)) / 1000


def set_up_process(device: torch.device) -> None:
    """Settings of this process for exact scores and, on a CPU, for fast ones."""
    exact_products()
    if device.type == "cpu":
        keep_freed_memory()


def exact_products() -> None:
    """Compute float32 products in float32 and sum 16-bit ones in float32, whatever the environment or caller set.

    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1, common in container images, only sets what a process starts with.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def keep_freed_memory() -> None:
    """Have the C library keep up to 1 GiB of freed memory in this process.

    glibc would return that of each layer's activations to the system, and page faults for the next layer's would take
    an eighth of the time of a pass on a CPU.
    """
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_MMAP_THRESHOLD, 1 << 25)  # the largest that it takes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. Those outside torch's CUDA allocator are recognized by their message only."""
    messages = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(m in str(error) for m in messages)


def free_bytes(device: torch.device) -> int:
    """Memory that tensors can still use on a CUDA device: free, or reserved by torch's allocator but unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def room_for(size: int, device: torch.device) -> bool:
    """Whether `size` bytes of weights and another 20 % for activations fit on a device now."""
    gc.collect()  # modules have reference cycles
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = free_bytes(device)
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return size * 1.2 < free
