"""The config.json of a Llama-like decoder: the fields that determine what it computes, with defaults by model type.

Names, defaults and meaning are those of transformers' configuration classes, whose import costs seconds. What is not
understood here, such as an unknown activation or rotary embedding, is left to transformers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

# Defaults of the fields that a model type reads; it ignores all others.
_COMMON: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
}
_QWEN = _COMMON | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_DEFAULTS = {
    "llama": _COMMON
    | {
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "mistral": _COMMON
    | {
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128, "attention_bias": False},
}
_FULL, _SLIDING = "full_attention", "sliding_attention"
# The numbers that each supported rotary embedding needs besides its base.
_ROPE_NUMBERS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
# Fields that change what is computed, and the values with which they change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "is_causal": (None, True),
    "original_max_position_embeddings": (None,),
    "partial_rotary_factor": (None, 1.0),
    "per_layer_config": (None,),
    "pretraining_tp": (None, 1),
    "quantization_config": (None,),
}
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True)
class LlamaConfig:
    """What a Llama-like decoder computes, by transformers' names."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str  # one of ACTIVATIONS
    max_position_embeddings: int
    rms_norm_eps: float
    rope_parameters: dict[str, Any]  # rope_type, rope_theta, and what this type of embedding needs
    attention_bias: bool  # of all four projections
    mlp_bias: bool
    sliding_window: int | None  # number of keys that a query sees, its own included
    layer_types: tuple[str, ...]  # full_attention or sliding_attention for each layer

    @property
    def windows(self) -> list[int | None]:
        """The sliding window of each layer, or None."""
        return [self.sliding_window if kind == _SLIDING else None for kind in self.layer_types]

    @property
    def qkv_bias(self) -> bool:
        """Whether the projections to queries, keys and values have biases."""
        return self.attention_bias or self.model_type == "qwen2"


def read_config(config: Mapping[str, Any]) -> LlamaConfig | None:
    """The config of a decoder of type llama, mistral, qwen2 or qwen3; None for any other, or one not understood."""
    kind = str(config.get("model_type"))
    if kind not in _DEFAULTS or any(config.get(name) not in values for name, values in _NEUTRAL.items()):
        return None
    fields = {name: config.get(name, default) for name, default in _DEFAULTS[kind].items()}
    if fields["num_key_value_heads"] is None:
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    windowed, first = fields.pop("use_sliding_window", True), fields.pop("max_window_layers", 0)
    fields["sliding_window"] = fields.get("sliding_window") if windowed else None
    fields |= {name: fields.get(name, False) for name in ("attention_bias", "mlp_bias")}
    if not (_has_types(fields) and isinstance(windowed, bool) and isinstance(first, int)):
        return None
    if fields["head_dim"] is None:
        fields["head_dim"] = fields["hidden_size"] // fields["num_attention_heads"]
    fields["layer_types"] = _layer_types(config, fields, first)
    fields["rope_parameters"] = _rope(config, fields["max_position_embeddings"])
    if fields["layer_types"] is None or fields["rope_parameters"] is None or not _fits(fields):
        return None
    return LlamaConfig(model_type=kind, **fields)


def _has_types(fields: Mapping[str, Any]) -> bool:
    optional = ("head_dim", "sliding_window")
    sizes = [
        value
        for name, value in fields.items()
        if name.startswith(("num_", "max_", "vocab_")) or name.endswith("_size")
    ]
    sizes += [fields[name] for name in optional if fields[name] is not None]
    return (
        all(type(size) is int and size > 0 for size in sizes)
        and isinstance(fields["rms_norm_eps"], int | float)
        and all(isinstance(fields[name], bool) for name in ("attention_bias", "mlp_bias"))
        and fields["hidden_act"] in list(ACTIVATIONS)
    )


def _fits(fields: Mapping[str, Any]) -> bool:
    heads, keys = fields["num_attention_heads"], fields["num_key_value_heads"]
    return not (fields["hidden_size"] % heads or heads % keys or fields["head_dim"] % 2)


def _layer_types(config: Mapping[str, Any], fields: Mapping[str, Any], first: int) -> tuple[str, ...] | None:
    """The type of each layer; None if config.json has types that are unknown, or that transformers ignores."""
    count, window, given = fields["num_hidden_layers"], fields["sliding_window"], config.get("layer_types")
    own = tuple(_FULL if window is None or i < first else _SLIDING for i in range(count))
    if given is None or given == list(own):
        return own
    read = "layer_types" in fields and window is not None and isinstance(given, list) and len(given) == count
    return tuple(given) if read and all(kind in (_FULL, _SLIDING) for kind in given) else None


def _rope(config: Mapping[str, Any], max_positions: int) -> dict[str, Any] | None:
    """The rotary embedding in the form of transformers 5 or, where there is a rope_scaling, 4."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict):
        return None
    rope = {"rope_theta": config.get("rope_theta", 10_000.0), **given}
    kind = rope.setdefault("rope_type", rope.get("type", "default"))
    if kind in ("llama3", "yarn"):
        rope.setdefault("original_max_position_embeddings", max_positions)
    needed = [rope.get(name) for name in ("rope_theta", *_ROPE_NUMBERS.get(str(kind), ("unknown",)))]
    if not all(type(number) in (int, float) for number in needed):
        return None
    nested = any(isinstance(value, dict) for value in rope.values())
    return None if nested or rope.get("partial_rotary_factor") not in (None, 1.0) else rope
