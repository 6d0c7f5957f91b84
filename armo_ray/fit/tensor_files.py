"""Safetensors files, written without torch: tensors of numpy, and some of the tensors of another file, as bytes.

The format is a little-endian u64 length, JSON of that length, and the bytes of the tensors, without gaps. See
https://huggingface.co/docs/safetensors.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from armo_ray.model.checkpoint import Tensor

_ALIGNMENT = 8  # of the first tensor in the file
_COPIED_BYTES = 16 << 20  # at once


def write_tensors(file: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write tensors as float32, contiguous, in the order of their names."""
    arrays = {name: np.ascontiguousarray(tensors[name], "<f4") for name in sorted(tensors)}
    with file.open("wb") as stream:
        stream.write(_header({name: ("F32", array.shape, array.nbytes) for name, array in arrays.items()}))
        for array in arrays.values():
            stream.write(array.tobytes())


def copy_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of another file, unchanged and in the order in which they lie there."""
    ordered = dict(sorted(tensors.items(), key=lambda entry: entry[1].start))
    with file.open("wb") as stream:
        stream.write(_header({name: (t.dtype, t.shape, t.stop - t.start) for name, t in ordered.items()}))
        for tensor in ordered.values():
            _copy(tensor, stream)


def _copy(tensor: Tensor, to: Any) -> None:
    with tensor.file.open("rb") as source:
        source.seek(tensor.start)
        left = tensor.stop - tensor.start
        while left:
            content = source.read(min(left, _COPIED_BYTES))
            if not content:
                raise OSError(f"{tensor.file}: became shorter while it was being copied")
            to.write(content)
            left -= len(content)


def _header(entries: Mapping[str, tuple[str, Sequence[int], int]]) -> bytes:
    """The bytes before the tensors, given the type, shape and size in bytes of each, in their order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, size) in entries.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
