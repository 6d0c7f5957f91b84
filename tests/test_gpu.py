"""On a CUDA device: the attention kernel against float64, and the engine against its own float32 on the CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch

from armo_ray.engine import RewardModel
from armo_ray.engine.attention import Plan, packed_attention
from armo_ray.engine.model import Group
from armo_ray.engine.packing import Ids, make_packs
from armo_ray.engine.tiny import write_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def groups_for(model: RewardModel, rng: np.random.Generator, count: int) -> list[Group]:
    """Prompts of 65 tokens with two answers each."""
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


@pytest.mark.parametrize("kv_heads", [8, 2, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_packed_attention_equals_float64_attention_of_each_sequence(
    dtype: torch.dtype, kv_heads: int
) -> None:
    rng = np.random.default_rng(0)
    ids = sequences(rng)
    (pack,) = make_packs(ids, [0] * len(ids), 4096)
    heads, dim, device = 8, 64, torch.device("cuda")
    generator = torch.Generator().manual_seed(0)
    count = len(pack.input_ids)
    q, k, v = (
        torch.randn(1, h, count, dim, generator=generator).to(device, dtype)
        for h in (heads, kv_heads, kv_heads)
    )
    out, _ = packed_attention(torch.nn.Module(), q, k, v, None, Plan.of(pack, device), scaling=dim**-0.5)
    for s in range(len(pack.cu_q) - 1):
        rows = torch.arange(int(pack.cu_q[s]), int(pack.cu_q[s + 1]), device=device)
        keys = torch.from_numpy(pack.kv_index[pack.cu_k[s] : pack.cu_k[s + 1]]).to(device)
        qs, ks, vs = q[0, :, rows].double(), k[0, :, keys].double(), v[0, :, keys].double()
        ks, vs = (x.repeat_interleave(heads // kv_heads, 0) for x in (ks, vs))
        seen = torch.ones(len(rows), len(keys), dtype=torch.bool, device=device).tril(len(keys) - len(rows))
        weights = (qs @ ks.transpose(1, 2) * dim**-0.5).masked_fill(~seen, -torch.inf).softmax(-1)
        expected = (weights @ vs).transpose(0, 1)
        error = (out[0, rows].double() - expected).norm() / expected.norm()
        assert error < (1e-5 if dtype == torch.float32 else 5e-3)


def test_scores_on_the_device_equal_those_on_the_cpu(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, hidden_size=256, num_heads=4, num_kv_heads=2)
    model = RewardModel.load(str(tmp_path), dtype="float32", device="cpu")
    groups = groups_for(model, np.random.default_rng(1), 20)
    expected = model.score(groups)
    torch.backends.cuda.matmul.allow_tf32 = False
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
    found = model.score([groups[i] for i in order]).score.reshape(-1, 2)
    assert np.array_equal(found, model.score(groups).score.reshape(-1, 2)[order])
