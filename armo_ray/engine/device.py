"""What depends on the device: copies to it, its clock, its memory."""

import gc
import os
import time
from typing import Any

import torch


def to_device(array: Any, device: torch.device) -> torch.Tensor:
    """A numpy array on the device; through pinned memory on CUDA, so that the copy waits for nothing."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Stopwatch:
    """Seconds of a device between the first mark and the second, the third and the fourth, ..., summed.

    Only `seconds` waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.stream is None:
            self.marks.append(time.perf_counter())
        else:
            self.marks.append(self.stream.record_event(torch.cuda.Event(enable_timing=True)))

    def seconds(self) -> float:
        pairs = zip(self.marks[::2], self.marks[1::2], strict=True)
        if self.stream is None:
            return float(sum(stop - start for start, stop in pairs))
        self.stream.synchronize()
        return float(sum(start.elapsed_time(stop) for start, stop in pairs)) / 1000


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch's own, cuBLAS's on CUDA, or one on a CPU, both told in words only."""
    told = ("CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(x in str(error) for x in told)


def free_bytes(device: torch.device) -> int:
    """Memory that tensors can still take on a CUDA device: free, or held by torch's allocator for reuse."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def room_for(size: int, device: torch.device) -> bool:
    """Whether this many bytes of weights, and as much again in part for work, fit on a device now."""
    gc.collect()  # modules refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = free_bytes(device)
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return size * 1.2 < free
