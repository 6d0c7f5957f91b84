"""What depends on the device: copies to it, its clock, its memory."""

import time
from typing import Any

import torch


def to_device(array: Any, device: torch.device) -> torch.Tensor:
    """A numpy array on the device; through pinned memory on CUDA, so that the copy waits for nothing."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Stopwatch:
    """Time that a device spends between `start` and `stop`, summed; waits for the device only in `seconds`."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        """Start, stop, start, stop, ..."""
        if self.cuda:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> float:
        pairs = list(zip(self.marks[::2], self.marks[1::2], strict=False))
        if not self.cuda:
            return float(sum(stop - start for start, stop in pairs))
        torch.cuda.synchronize()
        return float(sum(start.elapsed_time(stop) for start, stop in pairs)) / 1000


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on CUDA or on a CPU, where torch has no error of its own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def free_bytes(device: torch.device) -> int:
    """Memory that tensors can still take on a CUDA device: free, or held by torch's allocator for reuse."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
