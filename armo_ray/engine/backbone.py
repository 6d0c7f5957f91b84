"""The decoder under a head, as transformers has it, with nothing missing and the packed attention in place."""

from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging

from armo_ray.engine import attention
from armo_ray.engine.checkpoint import HEAD_PREFIXES, Checkpoint
from armo_ray.errors import ConfigError


def load_backbone(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The bare decoder (no lm_head, no remote code). Raises ConfigError where a weight would be left random."""
    logging.set_verbosity_error()  # its load report calls our heads unexpected; the check below is stricter
    logging.disable_progress_bar()
    auto: Any = AutoModel
    model, info = auto.from_pretrained(
        checkpoint.path,
        dtype=dtype,
        attn_implementation=attention.NAME,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    unexpected = [name for name in info["unexpected_keys"] if not name.startswith(HEAD_PREFIXES)]
    faults = {
        "missing": info["missing_keys"],
        "mis-shaped": info["mismatched_keys"],
        "unexpected": unexpected,
    }
    if any(faults.values()):
        told = "; ".join(f"{kind}: {sorted(map(str, names))[:5]}" for kind, names in faults.items() if names)
        raise ConfigError(f"{checkpoint.path}: the backbone does not match its config: {told}")
    model.requires_grad_(False)
    backbone: PreTrainedModel = model.eval().to(device)
    return backbone
