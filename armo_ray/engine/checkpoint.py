"""A checkpoint directory, read without torch: config, tensor headers, head tensors and a fingerprint.

Everything that can be wrong with a model and seen from its files is found here, before a GPU is asked for.
"""

import hashlib
import json
import struct
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from armo_ray.errors import ConfigError

# The order of the model card, https://huggingface.co/RLHFlow/ArmoRM-Llama3-8B-v0.1, with "-" as "_".
ARMORM_OBJECTIVES = (
    "helpsteer_helpfulness",
    "helpsteer_correctness",
    "helpsteer_coherence",
    "helpsteer_complexity",
    "helpsteer_verbosity",
    "ultrafeedback_overall_score",
    "ultrafeedback_instruction_following",
    "ultrafeedback_truthfulness",
    "ultrafeedback_honesty",
    "ultrafeedback_helpfulness",
    "beavertails_is_safe",
    "prometheus_score",
    "argilla_overall_quality",
    "argilla_judge_lm",
    "code_complexity",
    "code_style",
    "code_explanation",
    "code_instruction_following",
    "code_readability",
)
HEAD_PREFIXES = ("regression_layer.", "reward_transform_matrix", "gating.", "score.", "v_head.", "lm_head.")
HUB_FILES = ["*.json", "*.jinja", "*.safetensors"]
SAMPLE_BYTES = 1 << 16

Array = npt.NDArray[np.float32]


class Tensor(NamedTuple):
    """Where one tensor lies: `dtype` and `shape` as safetensors writes them, `start` and `stop` in bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Checkpoint:
    """A model directory whose files were found complete and whose head tensors have the right shapes."""

    path: Path
    revision: str | None
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def reward_names(self) -> tuple[str, ...]:
        """The names of the K objectives, in the order of the rows of `regression_layer.weight`."""
        count = int(self.config["num_objectives"])
        if count == len(ARMORM_OBJECTIVES):
            return ARMORM_OBJECTIVES
        return tuple(f"objective_{i}" for i in range(count))

    def read(self, name: str) -> Array:
        """One tensor as float32."""
        tensor = self.tensors[name]
        raw = np.memmap(tensor.file, np.uint8, "r", tensor.start, (tensor.stop - tensor.start,))
        return _to_float32(raw, tensor.dtype).reshape(tensor.shape)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over config, tensor headers, all head weights and three samples of every other tensor.

        Reading 15 GB to name a model would cost more than many runs. Training moves every tensor, so
        64 KiB at the start, the middle and the end of each tells two sets of weights apart.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps(self.config, sort_keys=True).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            for sample in _samples(tensor, whole=name.startswith(HEAD_PREFIXES)):
                digest.update(sample)
        return digest.hexdigest()


def resolve(model: str, revision: str | None = None) -> tuple[Path, str | None]:
    """The local directory of a model and its revision: a directory as it is, else a snapshot from the hub."""
    if Path(model).is_dir():
        if revision is not None:
            raise ConfigError(f"--revision {revision}: {model} is a local directory, which has no revisions")
        return Path(model).resolve(), None
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise ConfigError(f"model {model}: no such directory, and not a hub id of the form owner/name")
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(model, revision=revision, allow_patterns=HUB_FILES))
    except Exception as error:
        raise ConfigError(
            f"model {model}: no such directory, and the hub gave none: {error!s:.200}"
        ) from error
    return path, path.name


def inspect(model: str, revision: str | None = None) -> Checkpoint:
    """Read and check a checkpoint's files. Raises ConfigError that names the file or tensor at fault."""
    path, commit = resolve(model, revision)
    config = _read_json(path / "config.json")
    checkpoint = Checkpoint(path, commit, config, _read_headers(path))
    _check_head(checkpoint)
    _check_finite(checkpoint)
    return checkpoint


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path.parent} is not a model directory: it has no {path.name}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return content


def _read_headers(path: Path) -> dict[str, Tensor]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ConfigError(
            f"{path}: no *.safetensors file; other weight formats can run code and are not loaded"
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(_read_header(file))
    index = path / "model.safetensors.index.json"
    if index.exists() and (missing := sorted(set(_read_json(index)["weight_map"]) - set(tensors))):
        raise ConfigError(f"{index} names tensors that no file holds: {', '.join(missing[:5])}")
    return tensors


def _read_header(file: Path) -> dict[str, Tensor]:
    """https://huggingface.co/docs/safetensors: a little-endian u64 length, that much JSON, then the bytes."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > size - 8:
            raise ConfigError(f"{file}: truncated, or not a safetensors file")
        header = json.loads(stream.read(length))
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            tensors[name] = Tensor(file, entry["dtype"], tuple(entry["shape"]), start, stop)
    if any(tensor.stop > size for tensor in tensors.values()):
        raise ConfigError(f"{file}: truncated: {size} bytes, fewer than its header promises")
    return tensors


def _expected_head(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    try:
        hidden, count = int(config["hidden_size"]), int(config["num_objectives"])
        width, depth = int(config["gating_hidden_dim"]), int(config["gating_n_hidden"])
        float(config["gating_temperature"])
    except KeyError as error:
        raise ConfigError(
            f"config.json has no {error.args[0]!r}: not an ArmoRM checkpoint, which has hidden_size, "
            f"num_objectives, gating_temperature, gating_hidden_dim and gating_n_hidden"
        ) from None
    shapes: dict[str, tuple[int, ...]] = {
        "regression_layer.weight": (count, hidden),
        "reward_transform_matrix": (count, count),
        "gating.logit_scale": (1,),
    }
    widths = [hidden, *[width] * depth, count]
    for i, (wide_in, wide_out) in enumerate(pairwise(widths)):
        shapes[f"gating.layers.{i}.weight"] = (wide_out, wide_in)
        shapes[f"gating.layers.{i}.bias"] = (wide_out,)
    return shapes


def _check_head(checkpoint: Checkpoint) -> None:
    expected = _expected_head(checkpoint.config)
    found = {name: t.shape for name, t in checkpoint.tensors.items() if name.startswith(HEAD_PREFIXES)}
    faults = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    faults += [f"unexpected {name}" for name in sorted(found.keys() - expected.keys())]
    faults += [
        f"{name} has shape {found[name]}, expected {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    if faults:
        raise ConfigError(f"{checkpoint.path}: not a whole ArmoRM head: {'; '.join(faults)}")


def _check_finite(checkpoint: Checkpoint) -> None:
    for name, tensor in sorted(checkpoint.tensors.items()):
        for sample in _samples(tensor, whole=name.startswith(HEAD_PREFIXES)):
            if not np.isfinite(_to_float32(np.frombuffer(sample, np.uint8), tensor.dtype)).all():
                raise ConfigError(f"{tensor.file}: {name} holds NaN or infinite weights: the file is damaged")


def _samples(tensor: Tensor, whole: bool) -> list[bytes]:
    size = tensor.stop - tensor.start
    if whole or size <= 3 * SAMPLE_BYTES:
        spans = [(tensor.start, size)]
    else:
        middle = tensor.start + size // 2 // SAMPLE_BYTES * SAMPLE_BYTES
        spans = [(at, SAMPLE_BYTES) for at in (tensor.start, middle, tensor.stop - SAMPLE_BYTES)]
    with tensor.file.open("rb") as stream:
        return [stream.read(length) for at, length in spans if stream.seek(at) >= 0]


def _to_float32(raw: npt.NDArray[np.uint8], dtype: str) -> Array:
    if dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype not in ("F16", "F32", "F64"):
        raise ConfigError(f"weights of type {dtype} are not supported: expected BF16, F16, F32 or F64")
    return raw.view({"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]).astype(np.float32)
