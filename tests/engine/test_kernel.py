"""The CUDA path without a GPU: a strict kernel on the CPU behind the attention, and fake tensors of the 8B shape."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from armo_ray.engine import RewardModel, attention, heads
from armo_ray.engine.attention import Rule, Segments, attend
from armo_ray.engine.fp8 import quantize_
from armo_ray.engine.heads import Head
from armo_ray.engine.kernel_check import kernel_fault
from armo_ray.engine.llama import Llama
from armo_ray.engine.llama_config import read_config
from armo_ray.engine.options import Options
from armo_ray.engine.packing import Ids, Pack, make_packs
from armo_ray.errors import ConfigError
from armo_ray.model.families import FAMILIES
from armo_ray.tiny.armorm import random_head, write_tiny_model
from tests.support.architectures import random_groups
from tests.support.strict_kernel import StrictKernel, TopLeftKernel

CPU = torch.device("cpu")
HALF = {torch.bfloat16: 5e-3, torch.float16: 7e-4}  # and the error that rounding to it may cause


def sequences() -> list[Ids]:
    """Prefixes on two levels, segments of one token, and a sequence that is a prefix of another."""
    rng = np.random.default_rng(0)
    prompt, more, *own = (rng.integers(0, 500, n).astype(np.int32) for n in (70, 40, 1, 1, 33, 128))
    turn = np.concatenate((prompt, more))
    return [prompt, *(np.concatenate((before, ids)) for before in (prompt, turn) for ids in own)]


def exact(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, window: int | None
) -> torch.Tensor:
    """Attention (T, heads, head_dim) of all tokens of a pack in float64."""
    query, key, value = query.double(), key.double(), value.double()
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    out = torch.full_like(query, torch.nan)
    for s in range(len(pack.cu_q) - 1):
        rows = slice(int(pack.cu_q[s]), int(pack.cu_q[s + 1]))
        keys = torch.from_numpy(pack.kv_index[pack.cu_k[s] : pack.cu_k[s + 1]])
        own = len(keys) - (rows.stop - rows.start)
        seen = torch.ones(rows.stop - rows.start, len(keys), dtype=torch.bool).tril(own)
        seen = seen.triu(own - (window or len(keys)) + 1)
        logits = torch.einsum("qhd,khd->hqk", query[rows], key[keys]) * query.shape[-1] ** -0.5
        weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
        out[rows] = torch.einsum("hqk,khd->qhd", weights, value[keys])
    return out


@pytest.mark.parametrize(
    ("version", "dtype"),
    [
        ("torch-2.13", torch.bfloat16),
        ("torch-2.13", torch.float16),
        ("torch-2.11", torch.bfloat16),
        pytest.param("torch-2.11", torch.float16, marks=pytest.mark.nightly),
    ],
)
def test_attention_by_the_kernel_equals_float64_for_every_kind_of_pack(
    version: str,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    kernel = StrictKernel(version).use(monkeypatch)
    generator, worst = torch.Generator().manual_seed(0), 0.0
    ids = sequences()
    for share, fixed, kv_heads, window in product((True, False), (True, False), (4, 2, 1), (None, 40)):
        for pack in make_packs(ids, [[len(i) // 2] for i in ids], 1024, share, fixed):
            query, key, value = (
                torch.randn(len(pack.input_ids), n, 16, generator=generator).to(dtype)
                for n in (4, kv_heads, kv_heads)
            )
            expected, rule = exact(query, key, value, pack, window), Rule(window=window)
            rows = np.unique(np.concatenate((pack.read_index, pack.cu_q[:-1])))
            for most in (300, attention.MAX_KEYS):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(attention, "MAX_KEYS", most)
                    whole, some = Segments.of(pack, CPU), Segments.of_rows(pack, rows, CPU)
                calls = kernel.calls
                pairs = [(attend(query, key, value, whole, rule), expected)]
                pairs += [(attend(query[rows], key, value, some, rule), expected[rows])]
                assert kernel.calls - calls == len(whole.chunks) + len(some.chunks)
                worst = max(worst, *(float((a - e).norm() / e.norm()) for a, e in pairs))
    assert worst < HALF[dtype]
    record_property(f"largest error of the emulated kernel, {version}, {dtype}", f"{worst:.1e}")


@pytest.fixture(scope="module")
def grouped_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers with two query heads of 64 for each of keys and values."""
    path = tmp_path_factory.mktemp("models") / "grouped"
    write_tiny_model(path, hidden_size=256, num_layers=3, num_heads=4, num_kv_heads=2)
    return path


def test_scores_by_the_kernel_are_as_near_to_float32_as_those_without_whatever_the_options(
    grouped_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = RewardModel.load(str(grouped_model), device="cpu", token_budget=500)
    groups = random_groups(model.pattern, 0)
    expected = RewardModel.load(str(grouped_model), dtype="float32", device="cpu").score(groups)
    unavoidable = np.abs(model.score(groups).score - expected.score).mean()
    options: list[dict[str, bool]] = [
        {},
        {"needed_rows": False},
        {"share_prompts": False},
        {"fixed_packs": True},
    ]
    for version, changes in [*product(["torch-2.13"], options), ("torch-2.11", {})]:
        kernel = StrictKernel(version).use(monkeypatch)
        scores = model.with_options(**changes).score(groups)
        assert kernel.calls == 3 * scores.num_packs
        assert np.abs(scores.score - expected.score).mean() < 2 * unavoidable


def test_loading_refuses_a_kernel_that_answers_wrongly_and_does_without_one_that_fails(
    grouped_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        TopLeftKernel("torch-2.13").use(patch)
        with pytest.raises(
            ConfigError, match=r"attention kernel of torch .* wrong results.* --dtype float32"
        ):
            RewardModel.load(str(grouped_model), device="cpu")
    kernel = StrictKernel("torch-2.13").use(monkeypatch)
    assert RewardModel.load(str(grouped_model), device="cpu").options.kernel
    assert kernel.calls == 2

    def fail(*states: object) -> torch.Tensor:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nmore")

    monkeypatch.setattr(kernel, "segment", fail)
    model = RewardModel.load(str(grouped_model), device="cpu")
    assert not model.options.kernel
    assert "segment by segment, which is slower: FlashAttention only supports Ampere" in caplog.text
    assert np.isfinite(model.score(random_groups(model.pattern, 0)).score).all()


@pytest.mark.parametrize(("head_dim", "taken"), [(64, True), (256, True), (264, False), (12, False)], ids=str)
def test_heads_of_other_sizes_are_computed_without_the_kernel(
    head_dim: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    StrictKernel("torch-2.13").use(monkeypatch)
    backbone = torch.nn.Module()
    sizes = {"hidden_size": 512, "num_attention_heads": 2, "head_dim": head_dim}
    backbone.config, backbone.dtype = type("Config", (), sizes), torch.bfloat16  # type: ignore[assignment]
    fault = kernel_fault(backbone, CPU)
    assert fault == (None if taken else f"it does not take heads of {head_dim} dimensions")


def test_a_chunk_has_no_more_segments_than_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MAX_SEGMENTS", 3)
    ids = [np.array([i], np.int32) for i in range(8)]
    (pack,) = make_packs(ids, [[0]] * 8, 64)
    query, key, value = torch.randn(3, 8, 2, 8, generator=torch.Generator().manual_seed(0))
    for segments in (Segments.of(pack, CPU), Segments.of_rows(pack, np.arange(8), CPU)):
        assert [len(chunk.bounds) for chunk in segments.chunks] == [3, 3, 2]
        assert torch.equal(attend(query, key, value, segments), value)


class Devices(TorchDispatchMode):
    """Collects operations that run on a CPU, or that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on_cpu: set[str] = set()
        self.waits: set[str] = set()

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name, tensors = func.overloadpacket.__name__, [x for x in (out, *args) if isinstance(x, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.on_cpu.add(name)
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "item"):
            self.waits.add(name)
        return out


INPUT_COPIES = {"lift_fresh", "device", "to", "_to_copy"}
EIGHT_B = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500_000.0,
    "num_objectives": 19,
    "gating_hidden_dim": 1024,
    "gating_n_hidden": 3,
    "max_position_embeddings": 8192,
}


@pytest.mark.parametrize("fp8", [False, True], ids=["bfloat16", "fp8"])
def test_a_pass_of_the_8b_shape_stays_on_the_device_and_never_waits_for_it(
    fp8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    pattern = np.arange(5, dtype=np.int32)
    ids = [np.concatenate((pattern, np.full(n, 7, np.int32))) for n in (30, 40, 2000)]
    (pack,) = make_packs(ids, [[4, len(i) - 1] for i in ids], 16_384)
    tensors = random_head(EIGHT_B, torch.Generator().manual_seed(0))
    config = read_config(EIGHT_B)
    assert config is not None
    backbone = Llama(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in backbone.modules():
            for name, weight in module.named_parameters(recurse=False):
                fake = torch.empty(weight.shape, dtype=torch.bfloat16, device="cuda:0")
                setattr(module, name, torch.nn.Parameter(fake, requires_grad=False))
        backbone.frequencies = backbone.frequencies.to("cuda:0")
        if fp8:
            quantize_(backbone)
        compute = heads.armorm({name: tensor.to("cuda:0") for name, tensor in tensors.items()}, 10.0)
        names = tuple(f"r{i}" for i in range(19))
        model = RewardModel(backbone, Head(names, FAMILIES["armorm"], pattern, compute), Options(16_384))
        with Devices() as devices:
            output = model._outputs(pack).head
    assert {x.device.type for x in output} == {"cuda"}
    assert tuple(output[0].shape) == (3,)
    assert devices.waits == set()
    assert devices.on_cpu <= INPUT_COPIES
