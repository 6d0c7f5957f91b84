"""Peak speeds of GPUs. Imports nothing."""

# Peak operations per second for dense 16-bit and float8 products by CUDA's device name, from NVIDIA's data sheets
# (half of the figures "with sparsity"). A MIG slice of a GPU has another name, and so no known peak.
_PEAKS = {
    "NVIDIA A100-SXM4-40GB": (312e12, None),
    "NVIDIA A100-SXM4-80GB": (312e12, None),
    "NVIDIA A100-PCIE-40GB": (312e12, None),
    "NVIDIA A100 80GB PCIe": (312e12, None),
    "NVIDIA H100 80GB HBM3": (989e12, 1979e12),
    "NVIDIA H100 PCIe": (756e12, 1513e12),
    "NVIDIA H200": (989e12, 1979e12),
    "NVIDIA L4": (121e12, 242e12),
    "NVIDIA L40S": (362e12, 733e12),
}


def peak_of(name: str, dtype: str) -> float | None:
    """Peak operations per second of one GPU by CUDA's device name; None if not known."""
    half, fp8 = _PEAKS.get(name, (None, None))
    return {"bfloat16": half, "float16": half, "fp8": fp8}.get(dtype)
