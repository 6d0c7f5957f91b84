"""The stages of `jobs.measure.gpu` that need torch alone, by name: the machine, its speed, and the GPU tests."""

import platform
import shutil
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import torch

from armo_ray.bench.measure import seconds_each
from jobs.measure.gpu import NEEDS, PATIENCE
from jobs.measure.gpu_bench import Bench

KERNEL_TESTS = "attention or rows_that or float8_product or odd_row"
# (N, K) of products with the weights of the 8B shape; each has as many rows as a pack has tokens.
PRODUCTS = {
    "square": (8192, 8192),
    "q": (4096, 4096),
    "k": (1024, 4096),
    "qkv": (6144, 4096),
    "gate": (14336, 4096),
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
}


def machine(bench: Bench) -> None:
    packages = {name: version(name) for name in ("torch", "transformers")}
    bench.say(versions={"Python": platform.python_version(), **packages, "CUDA": torch.version.cuda})
    bench.say(float32_products=torch.get_float32_matmul_precision(), compiler=shutil.which("cc"))
    if bench.device.type == "cuda":
        query = "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm,mig.mode.current"
        _, text = bench.command("nvidia-smi", ["nvidia-smi", query, "--format=csv"], 20)
        properties = torch.cuda.get_device_properties(0)
        bench.say(memory_bytes=properties.total_memory, count=torch.cuda.device_count(), nvidia_smi=text)


def tests(bench: Bench, expression: str) -> None:
    command = [sys.executable, "-m", "pytest", "tests/engine/test_gpu.py", "-q", "-k", expression]
    command += ["-o", "filterwarnings=default", "-p", "no:cacheprovider", "--durations=8", "--tb=short"]
    bench.release()
    status, text = bench.command(f"pytest-{bench.stage}", command, PATIENCE * NEEDS[bench.stage] - 10)
    bench.say(pytest_status=status, tail=text[-1500:])
    if status:
        raise RuntimeError(f"pytest: status {status}: {text.strip().splitlines()[-1:]}")


def rates(bench: Bench) -> None:
    """Products in bfloat16 and float8, and copies."""
    least = 0.01 if bench.dry else 1.0
    for name, (n, k) in PRODUCTS.items():
        rows = 16384 if name != "square" else n
        rows, n, k = (size // 64 if bench.dry else size for size in (rows, n, k))
        a, b = (torch.randn(size, k, device=bench.device).bfloat16() for size in (rows, n))
        seconds = seconds_each(partial(torch.mm, a, b.T), bench.device, least)
        bench.say(product=name, bf16_flops=2 * rows * n * k / seconds)
        try:
            seconds = seconds_each(_fp8_product(a, b), bench.device, least)
            bench.say(product=name, fp8_flops=2 * rows * n * k / seconds)
        except (AttributeError, RuntimeError, ValueError) as error:
            bench.say(product=name, fp8_error=repr(error)[:300])
        del a, b
    _copies(bench, least)


def _fp8_product(a: torch.Tensor, b: torch.Tensor) -> Callable[[], torch.Tensor]:
    x, w = (rows.to(torch.float8_e4m3fn) for rows in (a, b))
    left, right = (torch.ones(*shape, device=a.device) for shape in ((len(a), 1), (1, len(b))))
    return lambda: torch._scaled_mm(x, w.T, left, right, out_dtype=torch.bfloat16, use_fast_accum=True)


def _copies(bench: Bench, least: float) -> None:
    size = 1 << (20 if bench.dry else 30)
    source, target = (torch.empty(size, dtype=torch.uint8, device=bench.device) for _ in range(2))
    seconds = seconds_each(partial(target.copy_, source), bench.device, least)
    bench.say(copy="device", bytes_per_s=2 * size / seconds)  # read and written
    host = torch.ones(size, dtype=torch.uint8)
    kinds = {"pageable": host} | ({"pinned": host.pin_memory()} if bench.device.type == "cuda" else {})
    for kind, memory in kinds.items():
        seconds = seconds_each(partial(target.copy_, memory), bench.device, least)
        bench.say(copy=kind, bytes_per_s=size / seconds)


RUN: dict[str, Callable[[Bench], None]] = {
    "machine": machine,
    "attention-tests": partial(tests, expression=KERNEL_TESTS),
    "rates": rates,
    "other-tests": partial(tests, expression=f"not ({KERNEL_TESTS})"),
}
