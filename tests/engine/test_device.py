"""What the engine asks of torch on any device: exact products, and errors that mean that memory ran out."""

from pathlib import Path

import pytest
import torch

from armo_ray.engine import RewardModel
from armo_ray.engine.device import is_out_of_memory
from armo_ray.tiny.armorm import write_tiny_model


def test_loading_switches_off_less_exact_products(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    torch.set_float32_matmul_precision("medium")
    cuda.allow_tf32 = cudnn.allow_tf32 = True
    cuda.allow_bf16_reduced_precision_reduction = cuda.allow_fp16_reduced_precision_reduction = True
    RewardModel.load(str(tmp_path), dtype="float32", device="cpu")
    assert torch.get_float32_matmul_precision() == "highest"
    assert not cuda.allow_tf32
    assert not cudnn.allow_tf32
    assert not cuda.allow_bf16_reduced_precision_reduction
    assert not cuda.allow_fp16_reduced_precision_reduction


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), False),
    ],
)
def test_failed_allocations_are_told_from_other_errors(error: Exception, memory: bool) -> None:
    assert is_out_of_memory(error) == memory
