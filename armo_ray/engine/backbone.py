"""Loading of the backbone: a decoder that runs on packs, on one device or with its layers spread over several, or an
encoder that runs on batches.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from armo_ray.engine.fp8 import quantize_
from armo_ray.engine.llama import Llama
from armo_ray.engine.llama_config import read_config
from armo_ray.engine.weights import load_llama, read_ahead
from armo_ray.errors import ConfigError
from armo_ray.model.checkpoint import Checkpoint

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "fp8": torch.bfloat16,  # for everything except linear layers
}


def devices_of(dtype: str, device: str | None) -> list[torch.device]:
    """The devices for the layers. Raises ConfigError for an unknown dtype, or if CUDA is not available."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype}: expected one of {', '.join(DTYPES)}")
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {device}: torch finds no CUDA device on this machine")
    names = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return [torch.device(name) for name in names.split(",")]


def load_backbone(checkpoint: Checkpoint, dtype: str, devices: Sequence[torch.device]) -> nn.Module:
    """The bare model (no lm_head, no remote code). Raises ConfigError if a weight would be left random.

    Weights in the checkpoint's own dtype are never copied in RAM: until they move to the device, they are views of
    memory-mapped files, whose pages all replicas on a node share.
    """
    if checkpoint.family.bidirectional and dtype == "fp8":
        raise ConfigError(
            f"dtype fp8: not for the encoder of the family {checkpoint.family.name}: use bfloat16"
        )
    read_ahead({tensor.file for tensor in checkpoint.tensors.values()})
    config = read_config(checkpoint.config)
    backbone: nn.Module
    if config is not None:
        backbone = load_llama(checkpoint, config)
    else:
        from armo_ray.engine import other_decoders  # imports transformers' models, which takes seconds

        load = other_decoders.load_encoder if checkpoint.family.bidirectional else other_decoders.load_decoder
        backbone = load(checkpoint, DTYPES[dtype], len(devices))
    layers: Any = backbone.layers
    if len(devices) > len(layers):
        raise ConfigError(f"{checkpoint.path}: {len(layers)} layers on {len(devices)} devices")
    place(backbone, devices, DTYPES[dtype], fp8=dtype == "fp8")
    return backbone


def place(
    backbone: nn.Module, devices: Sequence[torch.device], dtype: torch.dtype | None = None, fp8: bool = False
) -> None:
    """Move a decoder to its devices, four layers at a time, since most of the time goes into reading mapped pages.

    Each device gets the same number of consecutive layers; the first one also gets the modules before the layers,
    the last one the norm after them. A Llama's weights become `dtype` as they are moved. With `fp8`, a layer is
    quantized as it arrives, so that the devices never hold the unquantized weights of all layers.
    """
    own = isinstance(backbone, Llama)

    def move(module: nn.Module, device: torch.device, fp8: bool = False) -> None:
        if own:
            module.to(dtype)
        if fp8:
            quantize_(module, device)
        module.to(device)

    layers: Any = backbone.layers
    with ThreadPoolExecutor(4) as pool:
        targets = [devices[i * len(devices) // len(layers)] for i in range(len(layers))]
        list(pool.map(move, layers, targets, [fp8] * len(layers)))
    for name, module in backbone.named_children():
        if name != "layers":
            move(module, devices[-1] if name == "norm" else devices[0])
    if isinstance(backbone, Llama):
        backbone.frequencies = backbone.frequencies.to(devices[0])
