"""Llama-like decoders: config.json means what it means to transformers, and what does not fit is not guessed."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from armo_ray.engine import RewardModel
from armo_ray.engine.llama import Llama, rotary_frequencies
from armo_ray.engine.llama_config import LlamaConfig, read_config
from armo_ray.errors import ConfigError
from armo_ray.tiny.armorm import write_tiny_model
from tests.support.architectures import random_groups, write_architecture

SIZES: dict[str, Any] = {
    "vocab_size": 700,
    "hidden_size": 96,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 24,
    "hidden_act": "gelu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "attention_bias": True,
    "mlp_bias": True,
    "rope_theta": 5e5,
}
WINDOWS: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 77, "max_window_layers": 2}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "base-alone": {"rope_theta": 77.0},
    "base-in-new-form": {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.5}, "rope_theta": 1e6},
    "llama3": {"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 128, **LLAMA3}},
    "llama3-all-positions": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
    "yarn": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        "rope_theta": 1e6,
    },
    "yarn-tuned": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "attention_factor": 1.5,
        }
    },
    "old-form-first": {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "default", "rope_theta": 9.0},
    },
}
CONFIGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "everything": SIZES | WINDOWS,
    "no-window": SIZES | {"sliding_window": None},
    "unused-window": SIZES | {"use_sliding_window": False, "sliding_window": 77},
    "more-heads": {"num_attention_heads": 64},
    "narrow": {
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
} | {f"rope-{name}": SIZES | rope for name, rope in ROPES.items()}


def read(kind: str, given: dict[str, Any]) -> LlamaConfig:
    config = read_config({"model_type": kind, **given})
    assert config is not None
    return config


def as_transformers_reads(kind: str, given: dict[str, Any]) -> Any:
    auto: Any = AutoConfig
    return auto.for_model(kind, **json.loads(json.dumps(given)))  # changes what it is given


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("given", CONFIGS.values(), ids=CONFIGS.keys())
def test_every_field_is_what_transformers_reads(kind: str, given: dict[str, Any]) -> None:
    own, theirs = read(kind, given), as_transformers_reads(kind, given)
    for name in {field.name for field in fields(own)} - {"layer_types", "attention_bias", "mlp_bias"}:
        default = None if name == "sliding_window" else own.hidden_size // own.num_attention_heads
        if kind != "llama" or name != "sliding_window":  # Llama has no windows
            assert getattr(own, name) == getattr(theirs, name, default), name
    model: Any = AutoModel
    with torch.device("meta"):
        layers = model.from_config(theirs).layers
    own_state, state = (x.state_dict() for x in (Llama(own).layers, layers))
    assert {n: t.shape for n, t in own_state.items()} == {n: t.shape for n, t in state.items()}
    windows = [getattr(layer.self_attn, "sliding_window", None) for layer in layers]
    assert own.windows == ([theirs.sliding_window] * len(layers) if kind == "mistral" else windows)


@pytest.mark.parametrize("given", ROPES.values(), ids=ROPES.keys())
def test_rotations_have_the_bits_of_transformers(given: dict[str, Any]) -> None:
    own, theirs = read("llama", SIZES | given), as_transformers_reads("llama", SIZES | given)
    auto: Any = AutoModel
    rotary = auto.from_config(theirs).rotary_emb
    frequencies, scale = rotary_frequencies(own)
    assert torch.equal(frequencies, rotary.inv_freq)
    assert scale == rotary.attention_scaling
    positions = torch.arange(5000)
    model = Llama(own)
    expected = rotary(torch.empty(0, dtype=model.dtype), positions[None])
    for actual, same in zip(model.rotations(positions), expected, strict=True):
        assert torch.equal(actual, same[0])


NOT_UNDERSTOOD: dict[str, dict[str, Any]] = {
    "another-decoder": {"model_type": "gemma2"},
    "activation": {"hidden_act": "gelu_new"},
    "rope": {"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}},
    "longest-rope": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "rope-by-layer-type": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "part-of-a-head": {"partial_rotary_factor": 0.5},
    "part-of-a-head-in-rope": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    "rope-without-factor": {"rope_scaling": {"type": "linear"}},
    "positions-before-scaling": {"original_max_position_embeddings": 64},
    "tensor-parallel": {"pretraining_tp": 2},
    "quantized": {"quantization_config": {"quant_method": "fp8"}},
    "both-directions": {"is_causal": False},
    "ignored-layer-types": {"layer_types": ["sliding_attention"] * 4},
    "unknown-layer-types": {"model_type": "qwen3", "layer_types": ["full_attention", "linear_attention"] * 2},
    "too-few-layer-types": {"model_type": "qwen2", "layer_types": ["full_attention"]},
    "no-window-to-slide": {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 4},
    "text-for-a-number": {"hidden_size": "96"},
    "no-layers": {"num_hidden_layers": 0},
    "uneven-heads": {"num_key_value_heads": 4},
}


@pytest.mark.parametrize("given", NOT_UNDERSTOOD.values(), ids=NOT_UNDERSTOOD.keys())
def test_what_is_not_understood_is_left_to_transformers(given: dict[str, Any]) -> None:
    assert read_config({"model_type": "llama", **SIZES}) is not None
    assert read_config({"model_type": "llama", **SIZES, **given}) is None


def test_the_layer_types_of_a_qwen_choose_its_windows() -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    assert read("qwen3", SIZES | WINDOWS | {"layer_types": kinds}).windows == [77, None, 77, None]


@pytest.mark.parametrize(("changes", "own"), [({}, True), ({"hidden_act": "gelu_new"}, False)])
def test_a_decoder_is_computed_by_transformers_only_if_it_must_be(
    changes: dict[str, Any], own: bool, tmp_path: Path
) -> None:
    write_architecture(tmp_path, **changes)
    model = RewardModel.load(str(tmp_path), dtype="float32", device="cpu")
    assert isinstance(model.backbone, Llama) == own


def changed(path: Path, name: str, tensor: torch.Tensor | None) -> Path:
    """The checkpoint with another tensor, or without it."""
    write_tiny_model(path)
    file = path / "model-00001-of-00002.safetensors"
    tensors = {n: t for n, t in load_file(file).items() if n != name}
    save_file(tensors if tensor is None else tensors | {name: tensor}, file)
    (path / "model.safetensors.index.json").unlink()
    return path


@pytest.mark.parametrize(
    ("name", "tensor", "fault"),
    [
        ("model.norm.weight", None, "missing: .'norm.weight'"),
        ("model.layers.1.mlp.up_proj.weight", torch.ones(3, 4), r"mis-shaped: .*up_proj.weight.*\(3, 4\)"),
        ("model.layers.2.mlp.up_proj.weight", torch.ones(3, 4), "unexpected: .'model.layers.2.mlp.up_proj"),
        ("model.layers.0.self_attn.q_proj.bias", torch.ones(64), "unexpected: .*q_proj.bias"),
    ],
)
def test_tensors_that_do_not_match_the_config_are_refused(
    name: str, tensor: torch.Tensor | None, fault: str, tmp_path: Path
) -> None:
    path = str(changed(tmp_path, name, tensor))
    with pytest.raises(ConfigError, match=f"the backbone does not match its config: {fault}"):
        RewardModel.load(path, dtype="float32", device="cpu")


def test_frequencies_that_old_checkpoints_hold_are_not_read(tmp_path: Path) -> None:
    path = changed(tmp_path, "model.layers.0.self_attn.rotary_emb.inv_freq", torch.zeros(8))
    model = RewardModel.load(str(path), dtype="float32", device="cpu")
    assert isinstance(model.backbone, Llama)
    assert bool((model.backbone.frequencies > 0).all())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "fp8"])
def test_rotations_are_computed_in_float32_whatever_the_weights_are(dtype: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    model = RewardModel.load(str(tmp_path), dtype=dtype, device="cpu")
    assert isinstance(model.backbone, Llama)
    assert model.backbone.frequencies.dtype == torch.float32
    assert model.score(random_groups(model.pattern)).num_packs > 0
