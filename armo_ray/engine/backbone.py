"""The decoder under a head, as transformers has it, with nothing missing and the packed attention in place."""

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
    "fp8": torch.bfloat16,  # of what is not a linear layer
}


def load_backbone(checkpoint: Checkpoint, dtype: str, devices: Sequence[torch.device]) -> PreTrainedModel:
    """The bare decoder (no lm_head, no remote code). Raises ConfigError where a weight would be left random.

    Weights of the checkpoint's own type are never copied in RAM: they are views of the mapped files, whose
    pages the replicas of a node share, until each goes to the device.
    """
    logging.set_verbosity_error()  # its load report calls our heads unexpected; the check below is stricter
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
    unexpected = [name for name in info["unexpected_keys"] if not name.startswith((*HEAD_PREFIXES, LM_HEAD))]
    faults = {
        "missing": info["missing_keys"],
        "mis-shaped": info["mismatched_keys"],
        "unexpected": unexpected,
    }
    if any(faults.values()):
        told = "; ".join(f"{kind}: {sorted(map(str, names))[:5]}" for kind, names in faults.items() if names)
        raise ConfigError(f"{checkpoint.path}: the backbone does not match its config: {told}")
    if not (getattr(model, "_supports_attention_backend", False) and hasattr(model, "layers")):
        raise ConfigError(f"{checkpoint.path}: {type(model).__name__} cannot run on packs of conversations")
    if len(devices) > 1 and (kind := type(model.layers[0]).__name__) not in LLAMA_LIKE:
        raise ConfigError(f"{checkpoint.path}: layers of {kind} cannot be split over {len(devices)} devices")
    if len(devices) > len(model.layers):
        raise ConfigError(f"{checkpoint.path}: {len(model.layers)} layers on {len(devices)} devices")
    model.requires_grad_(False)
    backbone: PreTrainedModel = model.eval()
    place(backbone, devices, fp8=dtype == "fp8")
    return backbone


def _config(checkpoint: Checkpoint) -> Any:
    try:
        return AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False)
    except ValueError as error:
        kind = checkpoint.config.get("model_type")
        raise ConfigError(
            f"{checkpoint.path}/config.json: model_type {kind} is no architecture of this version of transformers, and "
            f"code that comes with a checkpoint is not run"
        ) from error


def _unpackable(config: Any) -> Iterator[str]:
    """What would come out wrong and not fail: packs give a token all earlier ones of its conversation, or the
    nearest, and turn it by its position alone."""
    layers = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if layers:
        yield f"layer_types {', '.join(sorted(layers))}: packs have full or sliding attention"
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {one.get("rope_type") for one in (rope, *rope.values()) if isinstance(one, dict)}
    for kind in kinds & {"dynamic", "longrope"}:
        yield f"rope_type {kind} depends on the longest conversation of a pack"


def place(backbone: PreTrainedModel, devices: Sequence[torch.device], fp8: bool = False) -> None:
    """Move a decoder to its devices, layer by layer, four at a time: reading mapped pages is what takes long.

    Each device gets an equal run of layers, the first also what comes before them and the last what comes
    after. With `fp8`, a layer is quantized as it arrives, so that only float8 weights of all layers are ever there.
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
