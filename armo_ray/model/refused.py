"""Checkpoints of known reward models that cannot be scored as they are, and what to do about them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Files of heads that only torch.load reads, which can run code. Every name is loaded by the command below.
_PICKLED = {
    "value_head.bin": ("value_head.bin",),  # LlamaFactory, without safetensors
    "regression_layer.pt": ("regression_layer.pt", "gating_layer.pt"),  # LDL-Reward
}


def refusal(path: Path, config: Mapping[str, Any], shapes: Mapping[str, Any]) -> str:
    """Why a checkpoint with this config and these tensors cannot be scored; "" if nothing is known against it."""
    fused = next((name for name in sorted(shapes) if name.endswith("attention.wqkv.weight")), None)
    if fused is not None:
        return (
            f"{fused}: InternLM2 stores queries, keys and values in one tensor. Its decoder is code in the checkpoint, "
            f"which is not executed, and transformers has none. Convert it to Llama's tensors, and describe its head "
            f"and the token that it reads in a file for --family"
        )
    for mark, files in _PICKLED.items():
        if (path / mark).exists() and not _has_head(mark, shapes):
            return f"its head is in {' and '.join(files)}, a format that can run code. {_conversion(path, files)}"
    if any(str(a).startswith("LDLReward") for a in config.get("architectures") or ()):
        files = _PICKLED["regression_layer.pt"]
        if not _has_head(files[0], shapes):
            where = f"its head is in {' and '.join(files)}, which are not here"
            return f"{where}. Download them. {_conversion(path, files)}"
    return ""


def _has_head(file: str, shapes: Mapping[str, Any]) -> bool:
    prefix = "v_head." if file == "value_head.bin" else f"{Path(file).stem}."
    return any(name.startswith(prefix) for name in shapes)


def _conversion(path: Path, files: tuple[str, ...]) -> str:
    """The command that writes the tensors of pickled files as safetensors, named as in the authors' modules."""
    parts = {file: "" if file.endswith(".bin") else f"{Path(file).stem}." for file in files}
    code = (
        "import torch; from safetensors.torch import save_file; "
        f"save_file({{p + n: t.contiguous() for f, p in {parts}.items() "
        "for n, t in torch.load(f, map_location='cpu', weights_only=True).items()}, 'value_head.safetensors')"
    )
    return f'In {path}, run: python -c "{code}"'
