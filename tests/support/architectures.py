"""Tiny random ArmoRMs on other decoders than the released one's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

from armo_ray.engine.reward_model import Group
from armo_ray.tiny.armorm import random_head, write_tiny_model

Ids = npt.NDArray[np.int32]


def write_architecture(path: Path, seed: int = 0, **changes: Any) -> None:
    """A checkpoint whose config.json has these changes, with random weights in which every tensor matters."""
    write_tiny_model(path)
    for file in path.glob("model*"):
        file.unlink()
    fields = json.loads((path / "config.json").read_text()) | {"initializer_range": 0.2} | changes
    del fields["auto_map"]
    (path / "config.json").write_text(json.dumps(fields))
    config: Any = AutoConfig.from_pretrained(path)
    generator = torch.manual_seed(seed)
    auto: Any = AutoModel
    model = auto.from_config(config)
    for tensor in model.parameters():  # norms start as ones and biases as zeros, which hides their absence
        if tensor.dim() == 1:
            tensor.data.add_(torch.randn(tensor.shape, generator=generator), alpha=0.3)
    prefix = model.base_model_prefix
    tensors = {f"{prefix}.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors | random_head(fields, generator), path / "model.safetensors", {"format": "pt"})


def random_groups(pattern: Ids, seed: int = 0, lengths: tuple[int, ...] = (1, 7, 40, 90)) -> list[Group]:
    """Prompts of a few tokens to some hundred, half of which begin alike, each with answers of these lengths."""
    rng = np.random.default_rng(seed)

    def words(count: int) -> Ids:
        return rng.integers(0, 500, count).astype(np.int32)

    system = words(60)
    begins = [words(0), words(200), system, np.concatenate((system, words(150)))]
    return [(np.concatenate((begin, words(9), pattern)), [words(n) for n in lengths]) for begin in begins]
