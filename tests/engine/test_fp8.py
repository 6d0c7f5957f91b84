"""A float8 linear layer computes the product of its rounded operands; a model of such layers stays close to float32."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from armo_ray.engine import RewardModel
from armo_ray.engine.fp8 import Fp8Linear, quantize, quantize_
from armo_ray.tiny.armorm import write_tiny_model
from tests.support.architectures import random_groups, write_architecture

IN, OUT = 96, 48


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product of the two matrices rounded to float8, computed in float64."""
    (a, scale_a), (b, scale_b) = quantize(x), quantize(weight)
    return (a.double() * scale_a.double()) @ (b.double() * scale_b.double()).T


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("rows", [1, 2, 63, 200])
def test_a_float8_product_is_that_of_its_rounded_operands(rows: int) -> None:
    x, weight = normal(rows, IN, seed=1), normal(OUT, IN)
    actual = Fp8Linear(weight, None)(x)
    assert relative(actual, exact(x, weight)) < 1e-6
    assert 1e-3 < relative(actual, x @ weight.T) < 0.05  # e4m3 keeps 3 bits: at most 1/16 of a number


def test_rounding_to_float8_errs_by_a_sixteenth_at_most() -> None:
    rows = normal(50, IN) * 10.0 ** torch.arange(-25.0, 25.0)[:, None].clamp(min=-8)
    numbers, scale = quantize(rows)
    error = (numbers.float() * scale - rows).abs()
    assert bool((error <= rows.abs() / 16 + scale * 2**-10).all())  # 2**-9 is the smallest e4m3 number


def test_the_bias_and_the_shape_and_type_of_the_input_are_kept() -> None:
    weight, bias = normal(OUT, IN), normal(OUT, seed=2)
    x = normal(3, 5, IN, seed=1).bfloat16()
    actual = Fp8Linear(weight.bfloat16(), bias.bfloat16())(x)
    assert actual.shape == (3, 5, OUT)
    assert actual.dtype == torch.bfloat16
    expected = exact(x.view(15, IN), weight.bfloat16()).view(3, 5, OUT) + bias.bfloat16().double()
    assert relative(actual, expected) < 4e-3


def test_rows_of_zeros_give_the_bias() -> None:
    weight, bias = normal(OUT, IN), normal(OUT, seed=2)
    weight[3] = 0
    actual = Fp8Linear(weight, bias)(torch.zeros(2, IN))
    assert torch.equal(actual, bias.expand(2, OUT))
    assert bool((Fp8Linear(weight, None)(normal(4, IN))[:, 3] == 0).all())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, 1e-30])
def test_an_odd_number_moves_no_other_row(value: float) -> None:
    layer, x = Fp8Linear(normal(OUT, IN), None), normal(8, IN, seed=1)
    plain = layer(x)
    x[5, 7] = value
    actual = layer(x)
    others = torch.arange(8) != 5
    assert torch.equal(actual[others], plain[others])
    if abs(value) < torch.inf:
        assert relative(actual[5], exact(x, layer.weight.float() * layer.scale.T)[5]) < 1e-6
    else:
        assert not actual[5].isfinite().any()


def test_only_widths_that_are_multiples_of_16_become_float8() -> None:
    model = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 24), nn.Linear(24, 32), nn.LayerNorm(32))
    quantize_(nn.Sequential(model, nn.Embedding(32, 32)))
    assert [type(layer) for layer in model] == [Fp8Linear, nn.Linear, nn.Linear, nn.LayerNorm]


def test_a_weight_is_gone_before_the_next_module_is_rounded() -> None:
    left: list[int] = []

    class Part(nn.Sequential):
        def __setattr__(self, name: str, value: torch.Tensor | nn.Module) -> None:
            if isinstance(value, Fp8Linear):
                left.append(sum(weight() is not None for weight in weights))
            super().__setattr__(name, value)

    parts = nn.Sequential(*(Part(nn.Linear(16, 16, bias=False)) for _ in range(3)))
    weights = [weakref.ref(weight) for weight in parts.parameters()]
    quantize_(parts)
    assert left == [3, 2, 1]


def test_a_float8_model_keeps_its_heads_and_stays_near_float32(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, hidden_size=128)
    plain, rounded = (RewardModel.load(str(tmp_path), dtype=d, device="cpu") for d in ("float32", "fp8"))
    kinds = {type(module) for module in rounded.backbone.modules()}
    assert Fp8Linear in kinds
    assert nn.Linear not in kinds
    hidden = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    read = hidden, torch.tensor([0, 1]), torch.tensor([2])
    for kept, same in zip(plain.head.compute(*read), rounded.head.compute(*read), strict=True):
        assert kept.dtype == torch.float32
        assert torch.equal(kept, same)
    groups = [group for seed in range(4) for group in random_groups(plain.pattern, seed)]
    expected, actual = plain.score(groups).score, rounded.score(groups).score
    assert np.corrcoef(expected, actual)[0, 1] > 0.95
    assert not np.array_equal(expected, actual)


def test_a_float8_model_keeps_the_biases_of_its_layers(tmp_path: Path) -> None:
    write_architecture(tmp_path, model_type="qwen2", num_hidden_layers=1)
    plain, rounded = (RewardModel.load(str(tmp_path), dtype=d, device="cpu") for d in ("float32", "fp8"))
    groups = random_groups(plain.pattern)
    expected, actual = plain.score(groups).score, rounded.score(groups).score
    assert np.corrcoef(expected, actual)[0, 1] > 0.95
