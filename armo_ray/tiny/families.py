"""A tiny checkpoint with random weights for every family: its tensor names, dtypes, config and template in 1 MB."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

from armo_ray.model.families import Family
from armo_ray.model.family_file import family_of
from armo_ray.model.recognize import BACKBONE_OF, EMBEDDINGS, LM_HEAD, expected_head
from armo_ray.tiny.armorm import write_json, write_tiny_model
from armo_ray.tiny.tokenizers import write_tokenizer

# Config fields of each decoder that do not depend on its size, as in released models.
BACKBONES: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 500000.0, "rms_norm_eps": 1e-05},
    "mistral": {"rope_theta": 10000.0, "sliding_window": 128},
    "qwen2": {"rope_theta": 1000000.0, "use_sliding_window": False},
    "qwen3": {"rope_theta": 1000000.0, "head_dim": 16},
    "gemma2": {
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 128,
    },
}
# Those of encoders, which belong to a family each.
_ENCODERS: dict[str, dict[str, Any]] = {
    "deberta-v2": {
        "layer_norm_eps": 1e-07,
        "max_relative_positions": -1,
        "norm_rel_ebd": "layer_norm",
        "pooler_dropout": 0,
        "pooler_hidden_act": "gelu",
        "pooler_hidden_size": 64,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "position_buckets": 256,
        "relative_attention": True,
        "share_att_key": True,
        "type_vocab_size": 0,
    }
}
_ENCODER_POSITIONS = 512
_TOKENIZERS = {
    "deberta-v2": "deberta",
    "mistral": "llama3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
}
_LLAMA_TOKENIZERS = {"classifier": "llama3-no-bos", "starling": "yi", "pairwise": "llama3-header"}
# The tokenizers of families that are trained on one, whatever the decoder.
_FAMILY_TOKENIZERS = {
    "prm-qwen": "qwen2-steps",
    "prm-eurus": "qwen2-steps",
    "prm-reasonflux": "qwen2-marks",
    "prm-shepherd": "sentencepiece",
    "prm-skywork": "qwen2-bos",
    "pairrm": "deberta-pairs",
}
# The decoders of families whose models have another one than Llama.
_USUAL = {
    "worldpm": "qwen2",
    "prm-qwen": "qwen2",
    "prm-eurus": "qwen2",
    "prm-reasonflux": "qwen2",
    "prm-shepherd": "mistral",
    "prm-skywork": "qwen2",
}
_GATED = {"gating_hidden_dim": 32, "gating_n_hidden": 3, "gating_temperature": 10, "num_objectives": 19}
_SCORE = {"do_normalize": True, "score_bias": True, "score_dim": 1}
_CONFIGS: dict[str, dict[str, Any]] = {
    "armorm": _GATED,
    "qrm": _GATED | {"num_quantiles": 19},
    "urm": {"id2label": {str(i): f"LABEL_{i}" for i in range(10)}},
    "ldl": {"num_objectives": 220},
    "beaver-reward": _SCORE | {"score_type": "reward"},
    "beaver-cost": _SCORE | {"score_type": "cost"},
}
_ARCHITECTURES = {
    "armorm": "{}ForRewardModelWithGating",
    "qrm": "LlamaForRewardModelWithGating31",
    "mlp-classifier": "{}ForRewardModel",
    "worldpm": "{}ForRewardModel",
    "urm": "LlamaForSequenceClassificationWithNormal_Weights",
    "value-head": "{}ForRewardModel",
    "athene": "CustomAutoModelForSequenceClassification",
    "beaver-reward": "LlamaForScore",
    "ldl": "LDLRewardModel27B",
    "beaver-cost": "LlamaForScore",
    "prm-qwen": "Qwen2ForProcessRewardModel",
    "prm-reasonflux": "Qwen2ForProcessRewardModel",
    "prm-skywork": "Qwen2ForPrmModel",
    "deberta": "DebertaV2ForSequenceClassification",
    "pairrm": "DebertaV2PairRM",
}


def write_family(
    path: Path,
    name: str | Family,
    backbone: str | None = None,
    seed: int = 0,
    max_length: int = 8192,
    **fields: Any,
) -> None:
    """Write a checkpoint directory of a family, or of a TOML file, with a decoder in BACKBONES.

    `fields` override config fields, such as id2label or tie_word_embeddings. Backbones and most heads are bfloat16,
    heads with a gate for the prompt float32, as in released models. The same seed gives the same weights.
    """
    family = family_of(name) if isinstance(name, str) else name
    name = family.name
    backbone = backbone or _USUAL.get(name) or BACKBONE_OF.get(name, "llama")
    if name == "armorm" and backbone == "llama" and not fields:
        write_tiny_model(path, seed, max_length=max_length)
        return
    path.mkdir(parents=True, exist_ok=True)
    if family.bidirectional:
        max_length = min(max_length, _ENCODER_POSITIONS)
    kind = _TOKENIZERS.get(backbone) or _LLAMA_TOKENIZERS.get(name, "llama3")
    kind = _FAMILY_TOKENIZERS.get(name, kind)
    if family.text == "whole":
        kind = "sentencepiece"
    longest = family.max_length if family.bidirectional else None
    tokenizer = write_tokenizer(path, kind, longest or max_length)
    size = {"vocab_size": tokenizer.get_vocab_size()}
    config = _config(family, backbone, size | {"max_position_embeddings": max_length} | fields)
    write_json(path / "config.json", config)
    torch.manual_seed(seed)
    auto: Any = AutoModel
    model = auto.from_config(AutoConfig.from_pretrained(path))
    for tensor in model.parameters():
        if (
            tensor.dim() == 1
        ):  # norms and biases start as ones or zeros, and leaving them out would go unnoticed
            tensor.data.add_(torch.randn(tensor.shape), alpha=0.3)
    prefix = {"starling": "transformer", "deberta": "deberta", "pairrm": "pretrained_model"}.get(
        name, "model"
    )
    tensors = {f"{prefix}.{n}": t.bfloat16().contiguous() for n, t in model.state_dict().items()}
    save_file(tensors | _head(family, config), path / "model.safetensors", {"format": "pt"})


def _config(family: Family, backbone: str, fields: dict[str, Any]) -> dict[str, Any]:
    stem = backbone.capitalize()
    kind = "{}ForCausalLM" if family.reads_logits else "{}ForSequenceClassification"
    config = {
        "architectures": [_ARCHITECTURES.get(family.name, kind).format(stem)],
        "hidden_size": 64,
        "initializer_range": 0.15,  # smaller weights would make all hidden states nearly equal
        "intermediate_size": 128,
        "model_type": backbone,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    if not (family.reads_logits or family.gated):
        config["id2label"] = {"0": "LABEL_0"}
    return config | (BACKBONES | _ENCODERS)[backbone] | _CONFIGS.get(family.name, {}) | fields


def _head(family: Family, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    shapes, optional = expected_head(family, config, {} if config["tie_word_embeddings"] else {LM_HEAD: ()})
    shapes.pop(EMBEDDINGS, None)  # belongs to the backbone
    shapes |= {name: shape for name, shape in optional.items() if not name.endswith(".bias")}
    dtype = torch.float32 if family.reads == "gate" else torch.bfloat16
    tensors = {}
    for name, shape in shapes.items():
        random = torch.randn(shape) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3)
        if name.endswith(("running_var", "normalizer.var")):
            random = random.abs() + 0.5
        if name.endswith(("logit_scale", ".weight")) and len(shape) == 1:
            random += 1.0
        if name == "reward_transform_matrix":
            random = torch.eye(shape[0]) - 0.1 * random.abs()
        tensors[name] = random.to(torch.int64 if name.endswith(("num_batches_tracked", ".count")) else dtype)
    return tensors
