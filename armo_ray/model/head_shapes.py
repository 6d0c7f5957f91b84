"""The shapes of tensors of a head, for heads that are chains of linear layers and for those of safe-rlhf."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.model.families import Family

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Expected = tuple[Shapes, Shapes]  # required and optional tensors


def chain(family: Family, hidden: int, shapes: Mapping[str, Shape]) -> Shapes:
    """Linear layers, each as wide as the one before it; the widths between them are the checkpoint's own."""
    widths = [shapes.get(f"{name}.weight", (hidden,))[0] for name in family.layers[:-1]]
    expected: Shapes = {}
    for name, (wide_in, wide_out) in zip(family.layers, pairwise([hidden, *widths, 1]), strict=True):
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
