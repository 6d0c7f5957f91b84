"""A checkpoint of a frozen backbone and a fitted head, as a directory that `score`, `verify` and others load.

Files of the backbone are hard links to the model's if they lie in a cache of downloads, where no file is ever changed:
a backbone of 15 GB takes no space twice. All others are copied, since a model may be saved again in place; on disks
that can do so, copies share blocks. A file that holds a tensor of another head is written again without it. The
language-model head goes too: the new head reads hidden states, never logits, and a decoder that shares it with the
embeddings keeps those.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from huggingface_hub.constants import HF_HUB_CACHE

from armo_ray.errors import ConfigError
from armo_ray.fit.tensor_files import copy_tensors, write_tensors
from armo_ray.model.checkpoint import Checkpoint
from armo_ray.model.families import HIDDEN
from armo_ray.model.recognize import is_beside
from armo_ray.storage.models import CACHE
from armo_ray.storage.scratch import scratch_directory

HEAD_FILE = "head.safetensors"
INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"  # transformers would read it alone, whatever the index says
# what a tokenizer consists of, and the terms under which the model is given
_KEPT = re.compile(
    r"tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|spiece\.model|"
    r"chat_template.*|generation_config\.json|(LICENSE|NOTICE|USE_POLICY).*",
    re.IGNORECASE,
)
# fields of a config.json that describe a head or a class that loads it
_OF_A_HEAD = (
    *("architectures", "auto_map", "id2label", "label2id", "num_labels", "num_objectives", "objectives"),
    *("gating_temperature", "gating_hidden_dim", "gating_n_hidden", "num_quantiles", "problem_type"),
    *("score_type", "score_dim", "score_bias", "do_normalize", "bias", "reward_token_id"),
)
_CODE = "modeling_custom.py"
_CLASS = "modeling_custom.LlamaForRewardModelWithGating"
_RELEASED = "RLHFlow/ArmoRM-Llama3-8B-v0.1"

# where files that were downloaded lie, which are never changed: those of the hub, and those of object stores
_CACHES = (Path(HF_HUB_CACHE), CACHE)
_FICLONE = 0x40049409  # of Linux: let a file share the blocks of another, until one of them is changed
_COPIED_BYTES = 16 << 20  # at once

Array = npt.NDArray[Any]


class FittedHead(NamedTuple):
    """A head of K rewards on hidden states of H numbers.

    layers: of the gate, as (out, in) weights and (out,) biases, from the hidden state on; none for bradley-terry.
    """

    kind: Literal["armorm", "bradley-terry"]
    names: tuple[str, ...]  # of the K rewards
    weights: Array  # (K, H)
    transform: Array  # (K, K)
    layers: tuple[tuple[Array, Array], ...] = ()
    temperature: float = 1.0


def check_room(output: Path) -> None:
    """Raise ConfigError unless a directory can be made there."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output {output}: exists and is not an empty directory")


def write_checkpoint(model: Checkpoint, head: FittedHead, output: Path, texts: Mapping[str, str]) -> None:
    """Write the directory, as a whole or not at all.

    Args:
        model: whose backbone, tokenizer and config it has.
        texts: contents of more files, by name.

    Raises ConfigError if the output is not empty.
    """
    check_room(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with scratch_directory(output.parent, f".{output.name}-") as beside:
        whole = beside / "model"
        whole.mkdir()
        files = _write_backbone(model, whole)
        tensors = head_tensors(head)
        write_tensors(whole / HEAD_FILE, tensors)
        _write_index(whole, files | dict.fromkeys(tensors, HEAD_FILE))
        _copy_others(model.path, whole)
        config = config_of(model.config, head, (model.path / _CODE).exists())
        if _CLASS in (config.get("auto_map") or {}).values():
            shutil.copy(model.path / _CODE, whole / _CODE)
        for name, text in {"config.json": _json(config), **texts}.items():
            (whole / name).write_text(text, "utf-8")
        with suppress(FileNotFoundError):
            output.rmdir()  # empty, as was checked
        try:
            whole.rename(output)
        except OSError as error:
            raise ConfigError(f"--output {output}: exists and is not an empty directory") from error


def dropped_tensors(model: Checkpoint) -> list[str]:
    """The names of a model's tensors that a new head leaves out: the heads that it had."""
    return sorted(name for name in model.tensors if is_beside(name, HIDDEN))


def head_tensors(head: FittedHead) -> dict[str, Array]:
    """The tensors of a head, named as its family has them. Scores are not scaled: logit_scale is 1."""
    if head.kind == "bradley-terry":
        return {"score.weight": head.weights}
    tensors = {
        "regression_layer.weight": head.weights,
        "reward_transform_matrix": head.transform,
        "gating.logit_scale": np.ones(1, np.float32),
    }
    for i, (weight, bias) in enumerate(head.layers):
        tensors |= {f"gating.layers.{i}.weight": weight, f"gating.layers.{i}.bias": bias}
    return tensors


def config_of(config: Mapping[str, Any], head: FittedHead, with_code: bool = False) -> dict[str, Any]:
    """The config.json of a checkpoint with this head, made of that of its backbone.

    with_code: whether the model's directory has the released model's code, which transformers runs if it is told to.
        Without it, `auto_map` names the released repository.
    """
    own = {name: value for name, value in config.items() if name not in _OF_A_HEAD}
    stem = _stem(config)
    if head.kind == "bradley-terry":
        labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        return {"architectures": [f"{stem}ForSequenceClassification"], **own, **labels}
    own = {"architectures": [f"{stem}ForRewardModelWithGating"], **own}
    if config.get("model_type") == "llama":
        code = _CLASS if with_code else f"{_RELEASED}--{_CLASS}"
        own["auto_map"] = {"AutoModelForSequenceClassification": code}
    widths = [len(bias) for _, bias in head.layers[:-1]]
    return {
        **own,
        "num_objectives": len(head.names),
        "objectives": list(head.names),
        "gating_temperature": head.temperature,
        "gating_hidden_dim": widths[0] if widths else 0,
        "gating_n_hidden": len(widths),
    }


def _stem(config: Mapping[str, Any]) -> str:
    """How the names of a decoder's classes begin: Llama, Qwen2."""
    for name in config.get("architectures") or ():
        if match := re.match(r"([A-Za-z0-9]+?)(For|Model)", str(name)):
            return match[1]
    return str(config.get("model_type", "")).capitalize()


def _write_backbone(model: Checkpoint, to: Path) -> dict[str, str]:
    """Link, copy or rewrite the files that hold the backbone. Returns the file of each of its tensors."""
    by_file: dict[Path, list[str]] = {}
    for name, tensor in model.tensors.items():
        by_file.setdefault(tensor.file, []).append(name)
    files: dict[str, str] = {}
    for file, names in by_file.items():
        kept = {name: model.tensors[name] for name in names if not is_beside(name, HIDDEN)}
        if not kept:
            continue
        own = "backbone.safetensors" if file.name in (_SINGLE, HEAD_FILE) else file.name
        if list(kept) == names:
            link_or_copy(file, to / own)
        else:
            copy_tensors(to / own, kept)
        files |= dict.fromkeys(kept, own)
    return files


def link_or_copy(file: Path, to: Path, caches: Sequence[Path] = _CACHES) -> None:
    """A hard link to a file of a cache, where the file system has those; else a copy, which later changes spare."""
    original = file.resolve()
    if any(original.is_relative_to(cache.resolve()) for cache in caches):
        with suppress(OSError):
            os.link(original, to)
            return
    with original.open("rb") as source, to.open("wb") as target:
        try:
            fcntl.ioctl(target, _FICLONE, source.fileno())
        except OSError:  # the file system cannot share blocks, or it is another one
            shutil.copyfileobj(source, target, _COPIED_BYTES)


def _write_index(folder: Path, files: Mapping[str, str]) -> None:
    size = sum((folder / name).stat().st_size for name in set(files.values()))
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}
    (folder / INDEX).write_text(_json(index), "utf-8")


def _copy_others(model: Path, to: Path) -> None:
    names: Sequence[Path] = sorted(path for path in model.iterdir() if path.is_file())
    for file in names:
        if _KEPT.fullmatch(file.name):
            shutil.copy(file, to / file.name)


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
