"""Weights of a Llama-like decoder, mapped from the files of a checkpoint, and the check that none is missing."""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from safetensors import safe_open

from armo_ray.engine.llama import Llama
from armo_ray.engine.llama_config import LlamaConfig
from armo_ray.errors import ConfigError
from armo_ray.model.checkpoint import Checkpoint
from armo_ray.model.recognize import LM_HEAD, head_prefixes, is_beside

READ_AHEAD = 1 << 20  # bytes; Linux reads only a few megabytes of what it is asked for at once


def load_llama(checkpoint: Checkpoint, config: LlamaConfig) -> Llama:
    """A decoder whose weights are views of memory-mapped files, in the checkpoint's own dtype.

    Raises ConfigError if a tensor is missing, unexpected or of another shape.
    """
    model = Llama(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    prefix = r"^(model|transformer)\." if checkpoint.family.name == "starling" else r"^model\."
    stored = {re.sub(prefix, "", name): name for name in checkpoint.tensors}
    shapes = {own: checkpoint.tensors[name].shape for own, name in stored.items() if own in wanted}
    check_backbone(
        checkpoint,
        missing=wanted.keys() - stored.keys(),
        mis_shaped=[
            (stored[own], shape, wanted[own]) for own, shape in shapes.items() if shape != wanted[own]
        ],
        unexpected=[
            name for own, name in stored.items() if own not in wanted and not is_head(name, checkpoint)
        ],
    )
    model.load_state_dict(_mapped(checkpoint, {name: stored[name] for name in wanted}), assign=True)
    return model.eval()


def is_head(name: str, checkpoint: Checkpoint) -> bool:
    """Whether a tensor is no part of the backbone: the head's, or numbers that old checkpoints repeat."""
    return (
        name.startswith((*head_prefixes(checkpoint.family), LM_HEAD))
        or name.endswith(("rotary_emb.inv_freq", "embeddings.position_ids"))
        or is_beside(name, checkpoint.family)
    )


def check_backbone(
    checkpoint: Checkpoint, missing: Iterable[Any], mis_shaped: Iterable[Any], unexpected: Iterable[Any]
) -> None:
    """Raise ConfigError if the weights do not match the config."""
    faults = {"missing": list(missing), "mis-shaped": list(mis_shaped), "unexpected": list(unexpected)}
    if any(faults.values()):
        listing = "; ".join(f"{kind}: {sorted(map(str, keys))[:5]}" for kind, keys in faults.items() if keys)
        raise ConfigError(f"{checkpoint.path}: the backbone does not match its config: {listing}")


def read_ahead(files: Iterable[Path]) -> Thread:
    """Ask the system to read files into its cache, where it can be asked, in a thread that is not waited for."""

    def advise() -> None:
        if not hasattr(os, "posix_fadvise"):
            return
        for file in files:
            with suppress(OSError), file.open("rb") as stream:  # whoever reads the file will report a fault
                for start in range(0, file.stat().st_size, READ_AHEAD):
                    os.posix_fadvise(stream.fileno(), start, READ_AHEAD, os.POSIX_FADV_WILLNEED)

    thread = Thread(target=advise, daemon=True)
    thread.start()
    return thread


def _mapped(checkpoint: Checkpoint, stored: dict[str, str]) -> dict[str, torch.Tensor]:
    """Tensors by name, given their names in the checkpoint."""
    by_file: dict[Path, list[str]] = {}
    for name in stored:
        by_file.setdefault(checkpoint.tensors[stored[name]].file, []).append(name)
    tensors: dict[str, torch.Tensor] = {}
    for file, names in by_file.items():
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(stored[name]) for name in names}
    return tensors
