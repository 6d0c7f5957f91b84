"""On a CUDA device: the attention kernel against float64, and the engine against its own float32 on the CPU."""

import re
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from armo_ray.engine import RewardModel, Scores
from armo_ray.engine.attention import Segments, attend
from armo_ray.engine.device import Stopwatch, free_bytes
from armo_ray.engine.fixed_shape import BLOCK_ROWS
from armo_ray.engine.fp8 import Fp8Linear, quantize
from armo_ray.engine.other_decoders import packed_attention
from armo_ray.engine.packing import Ids, make_packs
from armo_ray.engine.reward_model import Group
from armo_ray.tiny.armorm import write_tiny_model
from tests.support.architectures import random_groups

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


# Warnings of torch.compile's own imports, and its advice to allow TF32.
COMPILE_WARNINGS = ("ignore::DeprecationWarning:torch.*", "ignore::UserWarning:torch.*")
DEVICE = torch.device("cuda")


def groups_for(model: RewardModel, rng: np.random.Generator, count: int) -> list[Group]:
    """Prompts of 65 tokens with two responses each."""
    return [
        (
            [*rng.integers(0, 500, 60).tolist(), *model.pattern.tolist()],
            [rng.integers(0, 500, n) for n in (5, 80)],
        )
        for _ in range(count)
    ]


def sequences(rng: np.random.Generator) -> list[Ids]:
    """Shared prefixes on two levels, single-token segments, and a sequence that is a prefix of another."""
    prompt = rng.integers(0, 500, 70).astype(np.int32)
    turn = np.concatenate((prompt, rng.integers(0, 500, 40).astype(np.int32)))
    answers = [rng.integers(0, 500, n).astype(np.int32) for n in (1, 1, 33, 128, 300)]
    return [prompt, *(np.concatenate((before, a)) for before in (prompt, turn) for a in answers)]


@pytest.mark.parametrize(
    "rule", [{}, {"sliding_window": 40}, {"softcap": 0.5}], ids=["plain", "window", "softcap"]
)
@pytest.mark.parametrize("kv_heads", [8, 2, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_packed_attention_equals_float64_attention_of_each_sequence(
    dtype: torch.dtype, kv_heads: int, rule: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    ids = sequences(rng)
    (pack,) = make_packs(ids, [[0]] * len(ids), 4096)
    heads, dim, device = 8, 64, torch.device("cuda")
    generator = torch.Generator().manual_seed(0)
    count = len(pack.input_ids)
    q, k, v = (
        torch.randn(1, h, count, dim, generator=generator).to(device, dtype)
        for h in (heads, kv_heads, kv_heads)
    )
    segments = Segments.of(pack, device)
    out, _ = packed_attention(torch.nn.Module(), q, k, v, None, segments, scaling=dim**-0.5, **rule)
    for s in range(len(pack.cu_q) - 1):
        rows = torch.arange(int(pack.cu_q[s]), int(pack.cu_q[s + 1]), device=device)
        keys = torch.from_numpy(pack.kv_index[pack.cu_k[s] : pack.cu_k[s + 1]]).to(device)
        qs, ks, vs = q[0, :, rows].double(), k[0, :, keys].double(), v[0, :, keys].double()
        ks, vs = (x.repeat_interleave(heads // kv_heads, 0) for x in (ks, vs))
        seen = torch.ones(len(rows), len(keys), dtype=torch.bool, device=device).tril(len(keys) - len(rows))
        seen = seen.triu(len(keys) - len(rows) - rule.get("sliding_window", len(keys)) + 1)
        weights = qs @ ks.transpose(1, 2) * dim**-0.5
        if "softcap" in rule:
            weights = rule["softcap"] * torch.tanh(weights / rule["softcap"])
        expected = (weights.masked_fill(~seen, -torch.inf).softmax(-1) @ vs).transpose(0, 1)
        error = (out[0, rows].double() - expected).norm() / expected.norm()
        assert error < (1e-5 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("kv_heads", [8, 2, 1])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_that_are_read_alone_attend_as_in_float64(dtype: torch.dtype, dim: int, kv_heads: int) -> None:
    ids = sequences(np.random.default_rng(0))
    (pack,) = make_packs(ids, [[len(i) // 2] for i in ids], 4096)
    rows = np.unique(np.concatenate((pack.read_index, pack.cu_q[:-1])))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(len(pack.input_ids), h, dim, generator=generator).to(DEVICE, dtype)
        for h in (8, kv_heads, kv_heads)
    )
    segments = Segments.of_rows(pack, rows, DEVICE)
    (chunk,) = segments.chunks
    assert chunk.kv_index is not None
    actual = attend(q[torch.from_numpy(rows).to(DEVICE)], k, v, segments)
    for i, (_, _, start, stop) in enumerate(chunk.bounds):
        ks, vs = (x[chunk.kv_index[start:stop]].double().repeat_interleave(8 // kv_heads, 1) for x in (k, v))
        weights = (torch.einsum("hd,khd->hk", q[rows[i]].double(), ks) * dim**-0.5).softmax(-1)
        expected = torch.einsum("hk,khd->hd", weights, vs)
        error = (actual[i].double() - expected).norm() / expected.norm()
        assert error < (1e-5 if dtype == torch.float32 else 5e-3)


def test_scores_on_the_device_equal_those_on_the_cpu(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, hidden_size=256, num_heads=4, num_kv_heads=2)
    model = RewardModel.load(str(tmp_path), dtype="float32", device="cpu")
    groups = groups_for(model, np.random.default_rng(1), 20)
    expected = model.score(groups)
    exact = RewardModel.load(str(tmp_path), dtype="float32", device="cuda").score(groups)
    assert np.abs(exact.score - expected.score).max() < 1e-5
    rounded = RewardModel.load(str(tmp_path), dtype="bfloat16", device="cuda").score(groups)
    alone = RewardModel.load(str(tmp_path), dtype="bfloat16", device="cpu", share_prompts=False).score(groups)
    error, unavoidable = (np.abs(x.score - expected.score).mean() for x in (rounded, alone))
    assert error < 2 * unavoidable


def test_fixed_packs_give_the_same_bits_in_any_order_on_the_device(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, hidden_size=256, num_heads=4, num_kv_heads=2)
    model = RewardModel.load(str(tmp_path), device="cuda", token_budget=2048, fixed_packs=True)
    rng = np.random.default_rng(2)
    groups = groups_for(model, rng, 60)
    order = rng.permutation(len(groups))
    actual = model.score([groups[i] for i in order]).score.reshape(-1, 2)
    assert np.array_equal(actual, model.score(groups).score.reshape(-1, 2)[order])


@pytest.fixture(scope="module")
def grouped_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers with two query heads of 64 for each of keys and values."""
    path = tmp_path_factory.mktemp("models") / "grouped"
    write_tiny_model(path, hidden_size=256, num_layers=3, num_heads=4, num_kv_heads=2)
    return path


def farthest(a: Scores, b: Scores) -> float:
    """The largest difference between two sets of scores."""
    return float(np.abs(a.score - b.score).max())


def error_of(actual: Scores, exact: Scores) -> float:
    """The mean distance of scores from those in float32."""
    return float(np.abs(actual.score - exact.score).mean())


def test_switches_never_move_a_score_on_the_device(grouped_model: Path) -> None:
    exact, rounded = (
        RewardModel.load(str(grouped_model), None, d, "cuda", 700) for d in ("float32", "bfloat16")
    )
    groups = [group for seed in range(4) for group in random_groups(exact.pattern, seed)]
    off = {"needed_rows": False, "share_prompts": False}
    plain, plainly_rounded = (model.with_options(**off).score(groups) for model in (exact, rounded))
    for values in product([True, False], repeat=2):
        switches = dict(zip(off, values, strict=True))
        assert farthest(exact.with_options(**switches).score(groups), plain) < 1e-5
        error = error_of(rounded.with_options(**switches).score(groups), plain)
        assert error < 2 * error_of(plainly_rounded, plain)


@pytest.mark.filterwarnings(*COMPILE_WARNINGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8"])
def test_compiled_functions_serve_all_layers_and_packs_on_the_device(grouped_model: Path, dtype: str) -> None:
    exact, model = (RewardModel.load(str(grouped_model), None, d, "cuda", 500) for d in ("float32", dtype))
    groups = [group for seed in range(4) for group in random_groups(model.pattern, seed)]
    expected, plain = exact.score(groups), model.score(groups)
    torch._dynamo.reset()
    counters.clear()
    compiled = model.with_options(compile=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        actual = [compiled.with_options(token_budget=n).score(groups) for n in (300, 500, 4096)]
    assert counters["stats"]["unique_graphs"] == 2
    assert len({scores.num_packs for scores in actual}) == 3
    assert max(error_of(scores, expected) for scores in actual) < 2 * error_of(plain, expected) + 1e-5


@pytest.mark.parametrize("rows", [1, 2, 63, 200])
def test_a_float8_product_on_the_device_is_that_of_its_rounded_operands(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator).to(DEVICE, torch.bfloat16)
        for shape in ((rows, 256), (144, 256), (144,))
    )
    actual = Fp8Linear(weight, bias)(x.view(1, rows, 256))[0].double()
    (a, scale_a), (b, scale_b) = quantize(x), quantize(weight)
    expected = (a.float() * scale_a).double() @ (b.float() * scale_b).double().T + bias
    assert (actual - expected).norm() / expected.norm() < 5e-3  # bfloat16 of the result
    assert (actual - (x.double() @ weight.double().T + bias)).norm() / expected.norm() < 0.05


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, 0.0])
def test_an_odd_row_moves_no_other_in_float8_on_the_device(value: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 256, generator=generator).to(DEVICE, torch.bfloat16) for n in (80, 144))
    layer, others = Fp8Linear(weight, None), torch.arange(80) != 5
    plain = layer(x)
    x[5] = value
    actual = layer(x)
    assert torch.equal(actual[others], plain[others])
    assert bool(actual[5].isfinite().all()) == (abs(value) < torch.inf)


def test_float8_scores_follow_bfloat16_ones(grouped_model: Path) -> None:
    rounded, model = (
        RewardModel.load(str(grouped_model), dtype=d, device="cuda") for d in ("bfloat16", "fp8")
    )
    groups = groups_for(model, np.random.default_rng(3), 40)
    expected, actual = rounded.score(groups).score, model.score(groups).score
    assert np.corrcoef(expected, actual)[0, 1] > 0.95
    assert not np.array_equal(expected, actual)


@pytest.mark.parametrize("others", [5, 90], ids=["one-block-of-rows", "many-blocks"])
def test_fixed_packs_give_the_same_bits_with_any_other_groups_on_the_device(
    grouped_model: Path, others: int
) -> None:
    model = RewardModel.load(
        str(grouped_model), device="cuda", token_budget=8192, share_prompts=False, fixed_packs=True
    )
    groups = groups_for(model, np.random.default_rng(4), others + 1)
    assert (4 * len(groups) > BLOCK_ROWS) == (others > 5)  # two rows for each of two responses
    alone, actual, turned = (model.score(part) for part in (groups[:1], groups, groups[::-1]))
    assert np.array_equal(alone.score, actual.score[:2])
    assert np.array_equal(actual.score.reshape(-1, 2), turned.score.reshape(-1, 2)[::-1])


@pytest.fixture
def wide_model(tmp_path: Path) -> Path:
    """Nine million weights per layer, and 40 kB of float32 activations per token."""
    write_tiny_model(tmp_path, hidden_size=1024, num_layers=8, num_heads=8, num_kv_heads=4)
    return tmp_path


@pytest.fixture
def allow() -> Iterator[None]:
    """Free the device memory that a test used."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def leave(mebibytes: int) -> None:
    """Limit torch to this much more of the device's memory than it has now."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (mebibytes << 20)) / total)


@pytest.mark.usefixtures("allow")
def test_packs_shrink_when_the_device_runs_out_of_memory(wide_model: Path) -> None:
    model = RewardModel.load(str(wide_model), dtype="float32", device="cuda", token_budget=65_536)
    groups = groups_for(model, np.random.default_rng(5), 300)  # 45,000 tokens
    expected = model.with_options(token_budget=1024).score(groups)
    leave(400)
    actual = model.score(groups)
    assert 1024 <= model.options.token_budget < 45_000
    assert farthest(actual, expected) < 1e-5


@pytest.mark.usefixtures("allow")
def test_a_conversation_that_does_not_fit_on_the_device_is_named_and_others_are_scored(
    wide_model: Path,
) -> None:
    model = RewardModel.load(str(wide_model), dtype="bfloat16", device="cuda", token_budget=4096)
    small = groups_for(model, np.random.default_rng(6), 3)
    expected = model.score(small)
    (long,) = groups_for(model, np.random.default_rng(7), 1)
    leave(200)
    with pytest.raises(RuntimeError, match="30065 tokens of one conversation do not fit in memory"):
        model.score([*small, (long[0], [np.ones(30_000, np.int32)])])
    assert farthest(model.score(small), expected) < 1e-5


@pytest.mark.usefixtures("allow")
def test_the_token_budget_is_what_fits_into_free_memory(wide_model: Path) -> None:
    whole = RewardModel.load(str(wide_model), device="cuda")
    assert whole.options.token_budget == 16_384
    groups = groups_for(whole, np.random.default_rng(8), 150)
    expected = whole.score(groups)
    torch.cuda.empty_cache()
    hog = torch.empty(free_bytes(DEVICE) - (350 << 20), dtype=torch.uint8, device=DEVICE)
    model = RewardModel.load(str(wide_model), device="cuda")
    budget = model.options.token_budget
    assert 1024 <= budget < 16_384
    actual = model.score(groups)
    assert model.options.token_budget == budget  # nothing ran out
    assert np.corrcoef(actual.score, expected.score)[0, 1] > 0.99
    del hog


def test_a_stopwatch_sums_what_lies_between_its_marks() -> None:
    x = torch.ones(4096, 4096, device=DEVICE)
    torch.cuda.synchronize()
    started, watch = time.perf_counter(), Stopwatch(DEVICE)
    for _ in range(3):
        watch.mark()
        x = x @ x / 4096
        watch.mark()
        time.sleep(0.1)
    seconds = watch.seconds()
    assert 0 < seconds < time.perf_counter() - started - 0.25


def test_seconds_in_the_model_are_below_those_of_the_call(grouped_model: Path) -> None:
    model = RewardModel.load(str(grouped_model), device="cuda", token_budget=500)
    groups = groups_for(model, np.random.default_rng(9), 40)
    model.score(groups)
    started = time.perf_counter()
    actual = model.score(groups)
    assert 0 < actual.model_seconds < time.perf_counter() - started
    assert model.score([]).model_seconds == 0


def host_bytes() -> int:
    """Memory of this process that is not mapped from a file."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    (kilobytes,) = re.findall(r"^Anonymous:\s+(\d+) kB", rollup, re.M)
    return int(kilobytes) * 1024


def test_loading_leaves_one_copy_of_the_weights(wide_model: Path) -> None:
    first = RewardModel.load(
        str(wide_model), device="cuda", token_budget=1024
    )  # also allocates CUDA's own memory
    before, host = torch.cuda.memory_allocated(), host_bytes()
    torch.cuda.reset_peak_memory_stats()
    model = RewardModel.load(str(wide_model), device="cuda", token_budget=1024)
    weights = sum(tensor.nbytes for tensor in model.backbone.parameters())
    assert {tensor.device for tensor in model.backbone.parameters()} == {first.device}
    assert weights <= torch.cuda.memory_allocated() - before < 1.05 * weights
    assert torch.cuda.max_memory_allocated() - before < 1.1 * weights
    assert host_bytes() - host < weights / 2


def test_float8_weights_take_half_the_memory_of_the_device(wide_model: Path) -> None:
    taken, models = [torch.cuda.memory_allocated()], []
    for dtype in ("bfloat16", "fp8"):
        models.append(RewardModel.load(str(wide_model), dtype=dtype, device="cuda", token_budget=1024))
        taken.append(torch.cuda.memory_allocated())
    wide, narrow = np.diff(taken)
    assert 0.4 * wide < narrow < 0.55 * wide


def test_layers_split_over_devices_score_as_on_one(grouped_model: Path) -> None:
    devices = ["cuda,cpu", "cpu,cuda"] + (["cuda:0,cuda:1"] if torch.cuda.device_count() > 1 else [])
    alone = RewardModel.load(str(grouped_model), dtype="float32", device="cuda", token_budget=500)
    groups = groups_for(alone, np.random.default_rng(4), 20)
    expected = alone.score(groups).score
    for device in devices:
        split = RewardModel.load(str(grouped_model), dtype="float32", device=device, token_budget=500)
        np.testing.assert_allclose(split.score(groups).score, expected, rtol=1e-4, atol=1e-5)
