"""A checkpoint directory, read without torch: config, tensor headers, head tensors and a fingerprint.

Every fault of a model that its files show is reported here, before a GPU is requested.
"""

import hashlib
import json
import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from armo_ray.errors import ConfigError
from armo_ray.model.families import HIDDEN, Family
from armo_ray.model.recognize import HEAD_PREFIXES, head_prefixes, recognize, reward_names
from armo_ray.model.refused import no_weights, refusal

HUB_FILES = ["*.json", "*.jinja", "*.safetensors"]
SAMPLE_BYTES = 1 << 16

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]


class Tensor(NamedTuple):
    """Location of a tensor in a file: `dtype` and `shape` as in safetensors, `start` and `stop` in bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Checkpoint:
    """A model directory whose files are complete and whose head tensors have the right shapes."""

    path: Path
    revision: str | None
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    family: Family

    @property
    def reward_names(self) -> tuple[str, ...]:
        """The names of the K rewards, in the order in which the head returns them."""
        return reward_names(self.family, self.config, self.shapes)

    @property
    def coefficients(self) -> list[float]:
        """Weights (K,) of the rewards in the score of a family without gates.

        The score is the mean of the rewards, unless the family gives their weights; for a process model, it is the
        reward "mean" of the steps.
        """
        names = self.reward_names
        if not names:
            return []
        if values := self.family.values:
            return [*values, *[0.0] * (len(names) - len(values))]
        return [1.0, 0.0, 0.0, 0.0] if self.family.by_step else [1 / len(names)] * len(names)

    @property
    def transform(self) -> list[list[float]]:
        """The matrix T of a gated family: score = rewards @ T @ gating."""
        if self.family.name == "armorm":
            return _rows(self.read("reward_transform_matrix"))
        return _rows(np.eye(len(self.reward_names), dtype=np.float32))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name: str) -> Array:
        """One tensor as float32."""
        tensor = self.tensors[name]
        raw = np.memmap(tensor.file, np.uint8, "r", tensor.start, (tensor.stop - tensor.start,))
        return _to_float32(raw, tensor.dtype).reshape(tensor.shape)

    def read_rows(self, name: str, rows: list[int]) -> Array:
        """Selected rows (R, ...) of one tensor as float32, flattened to (R, N)."""
        tensor = self.tensors[name]
        raw = np.memmap(tensor.file, np.uint8, "r", tensor.start, (tensor.stop - tensor.start,))
        return _to_float32(raw.reshape(tensor.shape[0], -1)[rows].ravel(), tensor.dtype).reshape(
            len(rows), -1
        )

    @cached_property
    def fingerprint(self) -> str:
        """A hash (32 hex digits) of config, tensor headers, all head weights and samples of every other tensor.

        Reading 15 GB to identify a model would cost more than many runs. Training changes every tensor, so 64 KiB
        at the start, the middle and the end of each are enough to distinguish two sets of weights.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps(self.config, sort_keys=True).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            for sample in _samples(tensor, whole=name.startswith(head_prefixes(self.family))):
                digest.update(sample)
        return digest.hexdigest()


def _rows(matrix: Array) -> list[list[float]]:
    return [[float(x) for x in row] for row in matrix]


def resolve(
    model: str, revision: str | None = None, files: Sequence[str] = HUB_FILES
) -> tuple[Path, str | None]:
    """The local directory of a model and its revision, None for a directory. Downloads `files` of a hub id."""
    if Path(model).is_dir():
        if revision is not None:
            raise ConfigError(f"--revision {revision}: {model} is a local directory, which has no revisions")
        return Path(model).resolve(), None
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise ConfigError(f"model {model}: no such directory, and not a hub id of the form owner/name")
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(model, revision=revision, allow_patterns=list(files)))
    except Exception as error:
        raise ConfigError(
            f"model {model}: no such directory, and the hub did not provide it: {error!s:.200}"
        ) from error
    return path, path.name


def inspect(model: str, revision: str | None = None, family: str | Family | None = None) -> Checkpoint:
    """Read and check a checkpoint's files.

    Args:
        family: a name in FAMILIES, a TOML file, or a `Family`; by default it is identified by the tensors.

    Raises:
        ConfigError: the message names the file or tensor at fault.
    """
    path, commit = resolve(model, revision)
    config, tensors = _read_json(path / "config.json"), _read_headers(path)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if why := refusal(path, config, shapes, needs_head=family != HIDDEN):
        raise ConfigError(f"{path}: {why}")
    try:
        recognized = recognize(config, shapes, family)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise ConfigError(
            f"{path}/config.json: a value has the wrong type: {type(error).__name__}: {error}"
        ) from error
    checkpoint = Checkpoint(path, commit, config, tensors, recognized)
    _check_finite(checkpoint)
    if why := recognized.unverified:
        logger.warning("family %s was not checked against its authors' code: %s", recognized.name, why)
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
        raise ConfigError(no_weights(path))
    tensors: dict[str, Tensor] = {}
    for file in files:  # value_head.safetensors of LlamaFactory is one of them
        own = _read_header(file)
        twice = sorted(name for name in own.keys() & tensors if name.startswith(HEAD_PREFIXES))
        if twice:
            raise ConfigError(f"{twice[0]} is in {tensors[twice[0]].file} and in {file}: remove one of them")
        tensors.update(own)
    index = path / "model.safetensors.index.json"
    weight_map = _read_json(index).get("weight_map") if index.exists() else {}
    if not isinstance(weight_map, dict):
        raise ConfigError(f"{index}: no weight_map, which says where each tensor is")
    if missing := sorted(set(weight_map) - set(tensors)):
        raise ConfigError(f"{index} names tensors that are in no file: {', '.join(missing[:5])}")
    return tensors


def _read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of a file. The format is a little-endian u64 length, JSON of that length, and the bytes.

    See https://huggingface.co/docs/safetensors.
    """
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
        raise ConfigError(f"{file}: truncated: {size} bytes, fewer than its header declares")
    return tensors


def _check_finite(checkpoint: Checkpoint) -> None:
    for name, tensor in sorted(checkpoint.tensors.items()):
        if tensor.dtype.startswith(("I", "U", "BOOL")):  # batch norms have integer counters
            continue
        for sample in _samples(tensor, whole=name.startswith(head_prefixes(checkpoint.family))):
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
