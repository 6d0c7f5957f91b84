"""Loading of the backbone: a transformers decoder with packed attention, and a check that no weight is missing."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging

from armo_ray.engine import attention
from armo_ray.engine.decoder import LLAMA_LIKE
from armo_ray.engine.fp8 import quantize_
from armo_ray.errors import ConfigError
from armo_ray.model.checkpoint import Checkpoint
from armo_ray.model.recognize import HEAD_PREFIXES, LM_HEAD

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "fp8": torch.bfloat16,  # for everything except linear layers
}


def load_backbone(checkpoint: Checkpoint, dtype: str, devices: Sequence[torch.device]) -> PreTrainedModel:
    """The bare decoder (no lm_head, no remote code). Raises ConfigError if a weight would be left random.

    Weights in the checkpoint's own dtype are never copied in RAM: until they move to the device, they are views of
    memory-mapped files, whose pages all replicas on a node share.
    """
    logging.set_verbosity_error()  # its load report lists head tensors as unexpected; the check below is stricter
    logging.disable_progress_bar()
    auto: Any = AutoModel
    config = _config(checkpoint)
    if refused := list(_unpackable(config)):
        raise ConfigError(f"{checkpoint.path}/config.json: {'; '.join(refused)}")
    model, info = auto.from_pretrained(
        checkpoint.path,
        config=config,
        dtype=DTYPES[dtype],
        attn_implementation=attention.NAME,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        key_mapping={r"^transformer\.": "model."} if checkpoint.family.name == "starling" else None,
    )
    _check_loaded(checkpoint, model, info, len(devices))
    model.requires_grad_(False)
    backbone: PreTrainedModel = model.eval()
    place(backbone, devices, fp8=dtype == "fp8")
    return backbone


def _check_loaded(checkpoint: Checkpoint, model: Any, info: dict[str, Any], num_devices: int) -> None:
    """Raise ConfigError if weights do not match the config, or the decoder cannot use packs or be split."""
    unexpected = [name for name in info["unexpected_keys"] if not name.startswith((*HEAD_PREFIXES, LM_HEAD))]
    faults = {
        "missing": info["missing_keys"],
        "mis-shaped": info["mismatched_keys"],
        "unexpected": unexpected,
    }
    if any(faults.values()):
        listing = "; ".join(f"{kind}: {sorted(map(str, keys))[:5]}" for kind, keys in faults.items() if keys)
        raise ConfigError(f"{checkpoint.path}: the backbone does not match its config: {listing}")
    if not (getattr(model, "_supports_attention_backend", False) and hasattr(model, "layers")):
        raise ConfigError(f"{checkpoint.path}: {type(model).__name__} cannot run on packs of conversations")
    if num_devices > 1 and (kind := type(model.layers[0]).__name__) not in LLAMA_LIKE:
        raise ConfigError(f"{checkpoint.path}: layers of {kind} cannot be split over {num_devices} devices")
    if num_devices > len(model.layers):
        raise ConfigError(f"{checkpoint.path}: {len(model.layers)} layers on {num_devices} devices")


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


def place(backbone: PreTrainedModel, devices: Sequence[torch.device], fp8: bool = False) -> None:
    """Move a decoder to its devices, four layers at a time, since most of the time goes into reading mapped pages.

    Each device gets the same number of consecutive layers; the first one also gets the modules before the layers,
    the last one the norm after them. With `fp8`, a layer is quantized as it arrives, so that the devices never hold
    the unquantized weights of all layers.
    """

    def move(layer: nn.Module, device: torch.device) -> None:
        if fp8:
            quantize_(layer, device)
        layer.to(device)

    layers: Any = backbone.layers
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(move, layers, [devices[i * len(devices) // len(layers)] for i in range(len(layers))]))
    for name, module in backbone.named_children():
        if name != "layers":
            module.to(devices[-1] if name == "norm" else devices[0])
