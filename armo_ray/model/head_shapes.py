"""The shapes of the tensors of heads, from the config."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.model.families import Family

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Expected = tuple[Shapes, Shapes]  # required and optional tensors


def armorm(config: Mapping[str, Any], _: Mapping[str, Shape]) -> Expected:
    """ArmoRM's regression layer, transform and gate."""
    hidden, count = int(config["hidden_size"]), int(config["num_objectives"])
    width, depth = int(config["gating_hidden_dim"]), int(config["gating_n_hidden"])
    float(config["gating_temperature"])
    shapes: Shapes = {
        "regression_layer.weight": (count, hidden),
        "reward_transform_matrix": (count, count),
        "gating.logit_scale": (1,),
    }
    for i, (wide_in, wide_out) in enumerate(pairwise([hidden, *[width] * depth, count])):
        shapes |= linear(f"gating.layers.{i}", wide_out, wide_in)
    return shapes, {}


def qrm(config: Mapping[str, Any], _: Mapping[str, Shape]) -> Expected:
    """QRM's regression layer of quantiles, transform, and gate with batch norms."""
    hidden, count = int(config["hidden_size"]), int(config.get("num_objectives", 19))
    width, depth = int(config.get("gating_hidden_dim", 1024)), int(config.get("gating_n_hidden", 3))
    shapes: Shapes = {
        "regression_layer.weight": (int(config["num_quantiles"]) * count, hidden),
        "reward_transform_matrix": (count, count),
        "gating.logit_scale": (1,),
    }
    counters: Shapes = {}
    for i in range(depth):
        norm = f"gating.layers.{3 * i + 2}"
        shapes[f"gating.layers.{3 * i}.weight"] = (width, hidden if i == 0 else width)
        shapes |= {f"{norm}.{field}": (width,) for field in ("weight", "bias", "running_mean", "running_var")}
        counters[f"{norm}.num_batches_tracked"] = ()
    return shapes | linear(f"gating.layers.{3 * depth}", count, width), counters


def chain(family: Family, hidden: int, shapes: Mapping[str, Shape]) -> Shapes:
    """Linear layers, each as wide as the one before it; the widths between them are the checkpoint's own."""
    widths = [(shapes.get(f"{name}.weight") or (hidden,))[0] for name in family.layers[:-1]]
    expected: Shapes = {}
    ends = pairwise([hidden, *widths, max(1, len(family.labels))])
    for name, (wide_in, wide_out) in zip(family.layers, ends, strict=True):
        expected |= linear(name, wide_out, wide_in)
    return expected if family.biased else {n: s for n, s in expected.items() if n.endswith(".weight")}


def linear(name: str, wide_out: int, wide_in: int) -> Shapes:
    """The tensors of a linear layer with a bias."""
    return {f"{name}.weight": (wide_out, wide_in), f"{name}.bias": (wide_out,)}


def beaver(config: Mapping[str, Any], kind: str) -> Expected:
    """The score head of safe-rlhf. Its normalizer is needed if the config asks for normalized scores."""
    if (found := config.get("score_type", kind)) != kind:
        raise ConfigError(f"config.json: score_type is {found}, but the family expects {kind}")
    expected: Shapes = {"score_head.weight": (1, int(config["hidden_size"]))}
    optional: Shapes = {"normalizer.count": (1,)}
    biased = config.get("score_bias", config.get("bias", False))
    (expected if biased else optional)["score_head.bias"] = (1,)
    for name in ("normalizer.mean", "normalizer.var"):
        (expected if config.get("do_normalize", False) else optional)[name] = (1,)
    return expected, optional


def two_labels(config: Mapping[str, Any]) -> Shapes:
    """The head of Qwen2.5-Math-PRM: two layers, and two labels at every token."""
    hidden = int(config["hidden_size"])
    return linear("score.0", hidden, hidden) | linear("score.2", 2, hidden)


def pairrm(config: Mapping[str, Any], _: Mapping[str, Shape]) -> Expected:
    """PairRM's head: two layers on the hidden states of a question and of a response."""
    if (tasks := config.get("n_tasks", 1)) != 1:
        raise ConfigError(f"config.json: n_tasks is {tasks}, expected 1, as in PairRM")
    hidden = int(config["hidden_size"])
    return linear("head_layer.1", hidden, 2 * hidden) | linear("head_layer.4", 1, hidden), {}


LDL_LEVELS = 10


def ldl_objectives(config: Mapping[str, Any]) -> int:
    """The number of objectives; the config counts the levels of all."""
    return int(config.get("num_objectives", 22 * LDL_LEVELS)) // LDL_LEVELS


def ldl(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Expected:
    """LDL-Reward's head: a distribution over levels for each objective, and a weight for each."""
    hidden, count = int(config["hidden_size"]), ldl_objectives(config)
    width = shapes.get("regression_layer.network.0.weight", (hidden,))[0]
    expected: Shapes = {}
    for name, step, wide_out in (("regression_layer", 2, LDL_LEVELS * count), ("gating_layer", 3, count)):
        for i, (before, after) in enumerate(pairwise([hidden, width, width, wide_out])):
            expected |= linear(f"{name}.network.{i * step}", after, before)
    return expected, {}
