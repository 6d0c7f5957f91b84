"""Checkpoints of known reward models that cannot be scored as they are, and what to do about them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Files of heads that only torch.load reads, which can run code. Every name is loaded by the command below.
_PICKLED = {
    "value_head.bin": ("value_head.bin",),  # LlamaFactory, without safetensors
    "regression_layer.pt": ("regression_layer.pt", "gating_layer.pt"),  # LDL-Reward
}


def refusal(path: Path, config: Mapping[str, Any], shapes: Mapping[str, Any], needs_head: bool = True) -> str:
    """Why a checkpoint with this config and these tensors cannot be scored; "" if nothing is known against it.

    Without `needs_head`, its hidden states alone are of use.
    """
    if why := _encoder(config, shapes):
        return why
    fused = next((name for name in sorted(shapes) if name.endswith("attention.wqkv.weight")), None)
    if fused is not None:
        return (
            f"{fused}: InternLM2 stores queries, keys and values in one tensor. Its decoder is code in the checkpoint, "
            f"which is not executed, and transformers has none. Convert it to Llama's tensors, and describe its head "
            f"and the token that it reads in a file for --family"
        )
    if not needs_head:
        return ""
    for mark, files in _PICKLED.items():
        if (path / mark).exists() and not _has_head(mark, shapes):
            return f"its head is in {' and '.join(files)}, a format that can run code. {_conversion(path, files)}"
    if any(str(a).startswith("LDLReward") for a in config.get("architectures") or ()):
        files = _PICKLED["regression_layer.pt"]
        if not _has_head(files[0], shapes):
            where = f"its head is in {' and '.join(files)}, which are not here"
            return f"{where}. Download them. {_conversion(path, files)}"
    return ""


def _encoder(config: Mapping[str, Any], shapes: Mapping[str, Any]) -> str:
    """Why an encoder is of neither deberta nor pairrm; "" if it is of one, or no encoder."""
    architecture = next(iter(config.get("architectures") or ()), "")
    if "ranker_type" in config:
        return (
            "PairRM as the package llm_blender stores it: use llm-blender/PairRM-hf, which is the same model"
        )
    if "head_layer.1.weight" in shapes:
        return _odd_field(config, {"type_vocab_size": 0, "position_biased_input": False})
    if "pooler.dense.weight" not in shapes or "classifier.weight" not in shapes:
        return ""
    if (kind := config.get("model_type")) != "deberta-v2":
        return f"model_type {kind}: of encoders, only DeBERTa v2 and v3 are supported (model_type deberta-v2)"
    if architecture not in ("", "DebertaV2ForSequenceClassification"):
        return f"architecture {architecture}: expected DebertaV2ForSequenceClassification, a reward model's"
    if (labels := shapes["classifier.weight"][0]) != 1:
        return f"classifier.weight has {labels} labels: it tells classes of texts apart; a reward model has one label"
    return _odd_field(config, {"type_vocab_size": 0, "pooler_hidden_act": "gelu"})


def _odd_field(config: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    for name, value in expected.items():
        if (found := config.get(name, value)) != value:
            return f"config.json: {name} is {found}, expected {value}, as in the released reward model"
    return ""


def no_weights(path: Path) -> str:
    """Why a directory without safetensors is refused, and how to convert a pytorch_model.bin."""
    code = (
        "import torch; from safetensors.torch import save_file; save_file({n: t.clone().contiguous() for n, t in "
        "torch.load('pytorch_model.bin', weights_only=True).items()}, 'model.safetensors')"
    )
    where = path if (path / "pytorch_model.bin").exists() else "a copy with its pytorch_model.bin"
    reason = "no *.safetensors file; other weight formats can run code and are not loaded"
    return f'{path}: {reason}. In {where}, run: python -c "{code}"'


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
