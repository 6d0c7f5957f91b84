"""Any decoder that is not Llama-like, computed by transformers with packed attention, and encoders as they are.

Importing this module imports transformers' modeling code, which takes seconds.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import AttentionInterface, AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging

from armo_ray.engine.attention import Rule, Segments, attend
from armo_ray.engine.weights import check_backbone, is_head
from armo_ray.errors import ConfigError
from armo_ray.model.checkpoint import Checkpoint

NAME = "armo_packed"


def load_decoder(checkpoint: Checkpoint, dtype: torch.dtype, num_devices: int) -> PreTrainedModel:
    """The bare decoder (no lm_head, no remote code) on the CPU.

    Raises ConfigError if a weight would be left random, or if the decoder cannot use packs or be split over devices.
    """
    config = _config(checkpoint)
    if refused := list(_unpackable(config)):
        raise ConfigError(f"{checkpoint.path}/config.json: {'; '.join(refused)}")
    renamed = {r"^transformer\.": "model."} if checkpoint.family.name == "starling" else None
    model = _loaded(checkpoint, config, dtype, attn_implementation=NAME, key_mapping=renamed)
    if not (getattr(model, "_supports_attention_backend", False) and hasattr(model, "layers")):
        raise ConfigError(f"{checkpoint.path}: {type(model).__name__} cannot run on packs of conversations")
    if num_devices > 1:
        kind = type(model.layers[0]).__name__
        raise ConfigError(f"{checkpoint.path}: layers of {kind} cannot be split over {num_devices} devices")
    return model


def load_encoder(checkpoint: Checkpoint, dtype: torch.dtype, num_devices: int) -> PreTrainedModel:
    """The bare encoder (no head, no remote code) on the CPU, whose blocks are `layers`, as those of decoders are.

    Raises ConfigError if a weight would be left random, or if several devices are asked for.
    """
    if num_devices > 1:
        raise ConfigError(f"{checkpoint.path}: an encoder cannot be split over {num_devices} devices")
    renamed = {r"^pretrained_model\.": "deberta."} if checkpoint.family.name == "pairrm" else None
    model: Any = _loaded(checkpoint, _config(checkpoint), dtype, key_mapping=renamed)
    model.layers = model.encoder.layer
    encoder: PreTrainedModel = model
    return encoder


def _loaded(checkpoint: Checkpoint, config: Any, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    logging.set_verbosity_error()  # its load report lists head tensors as unexpected; the check below is stricter
    logging.disable_progress_bar()
    auto: Any = AutoModel
    model, info = auto.from_pretrained(
        checkpoint.path,
        config=config,
        dtype=dtype,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    unexpected = [name for name in info["unexpected_keys"] if not is_head(name, checkpoint)]
    check_backbone(checkpoint, info["missing_keys"], info["mismatched_keys"], unexpected)
    model.requires_grad_(False)
    loaded: PreTrainedModel = model.eval()
    return loaded


def _config(checkpoint: Checkpoint) -> Any:
    try:
        return AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False)
    except ValueError as error:
        kind = checkpoint.config.get("model_type")
        raise ConfigError(
            f"{checkpoint.path}/config.json: this version of transformers has no model_type {kind}, and code in a "
            f"checkpoint is not executed"
        ) from error


def _unpackable(config: Any) -> Iterator[str]:
    """Features that packs would silently compute wrong.

    In a pack, a token attends to all earlier tokens of its conversation or to the nearest ones, and its rotary
    embedding depends on its position only.
    """
    layers = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if layers:
        yield f"layer_types {', '.join(sorted(layers))}: packs support full and sliding attention only"
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {entry.get("rope_type") for entry in (rope, *rope.values()) if isinstance(entry, dict)}
    for kind in kinds & {"dynamic", "longrope"}:
        yield f"rope_type {kind} would depend on the longest conversation of a pack"
    if not getattr(config, "is_causal", True):
        yield "is_causal false: in a pack, a token sees no later ones"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, heads, T, head_dim)
    key: torch.Tensor,  # (1, kv_heads, T, head_dim)
    value: torch.Tensor,
    attention_mask: None,
    segments: Segments,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """`attend` with the signature that transformers' decoders call; returns (1, T, heads, head_dim)."""
    if options.get("s_aux") is not None:
        raise NotImplementedError(f"{type(module).__name__} needs s_aux, which packs do not support")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend(q, k, v, segments, Rule(scaling, sliding_window, softcap))[None], None


AttentionInterface.register(NAME, packed_attention)
