"""A model directory in an object store, copied once to each node that needs it."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME

from armo_ray.errors import ConfigError
from armo_ray.storage.filesystem import in_parallel, is_remote, open_filesystem
from armo_ray.storage.retries import describe_error, patiently
from armo_ray.storage.shards import version_of

SUFFIXES = (".safetensors", ".json", ".jinja")  # nothing that could run code when it is loaded
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
CACHE = Path(HF_HOME) / "armo-ray"
_RANGE_BYTES = 16 << 20


def local_model(model: str, revision: str | None = None) -> tuple[str, str | None]:
    """Copy a remote model to this node once. Returns the directory of the copy and the revision.

    The revision is a hash of the names, sizes and versions of the model's files. A local directory or a hub id is
    returned as it is.

    Raises ConfigError if the files are not those of a model, or not those of the given revision.
    """
    if not is_remote(model):
        return model, revision
    fs, root = open_filesystem(model)
    files = _files(fs, root.rstrip("/"), model)
    current = hashlib.blake2b(json.dumps([model, sorted(files.items())]).encode(), digest_size=16).hexdigest()
    if revision not in (None, current):
        raise ConfigError(f"model {model}: its files changed: their revision is {current}, not {revision}")
    copy = CACHE / current
    with _alone(copy):
        if not copy.exists():
            _download(fs, root.rstrip("/"), model, copy)
    return str(copy), current


def _files(fs: Any, root: str, model: str) -> dict[str, tuple[int, str]]:
    """Size and version of each file directly in a model's directory, by path."""
    try:
        entries = patiently(f"listing {model}", lambda: fs.ls(root, detail=True))
    except FileNotFoundError:
        entries = []
    except OSError as error:
        raise ConfigError(f"model {model}: cannot be listed: {describe_error(error)}") from error
    files = {
        str(e["name"]): (int(e["size"]), version_of(e))
        for e in entries
        if e["type"] == "file" and e["name"].endswith(SUFFIXES)
    }
    if not any(name.endswith(".safetensors") for name in files):
        raise ConfigError(
            f"model {model}: it has no *.safetensors file; other weight formats can run code and are not copied"
        )
    return files


@contextmanager
def _alone(copy: Path) -> Iterator[None]:
    """Make other processes of this node wait. The lock ends with the process that has it."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{copy}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(fs: Any, root: str, model: str, copy: Path) -> None:
    """Copy the files. They appear together, and only if none of them changed while they were copied."""
    files = _files(fs, root, model)
    partial = Path(f"{copy}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    partial.mkdir()
    for path, (size, _) in files.items():
        _copy(fs, path, partial / path.rsplit("/", 1)[1], size)
    if _files(fs, root, model) != files:
        raise ConfigError(f"model {model}: its files changed while they were being copied: run again")
    os.rename(partial, copy)


def _copy(fs: Any, path: str, to: Path, size: int) -> None:
    """Copy one file in ranges, several at a time."""
    to.touch()

    def fetch(start: int) -> None:
        content = read_range(fs, path, start, min(start + _RANGE_BYTES, size))
        with open(to, "r+b") as stream:
            stream.seek(start)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())

    in_parallel(fetch, range(0, size, _RANGE_BYTES))


def read_range(fs: Any, path: str, start: int, stop: int) -> bytes:
    def attempt() -> bytes:
        content: bytes = fs.cat_file(path, start=start, end=stop)
        if len(content) != stop - start:
            raise ConnectionError(f"received {len(content)} of {stop - start} bytes from offset {start}")
        return content

    return patiently(f"reading {fs.unstrip_protocol(path)}", attempt)


def copy_tokenizer(model: str, to: Path) -> None:
    """Copy the tokenizer files of a remote model, without its weights. Raises ConfigError if one cannot be read."""
    fs, root = open_filesystem(model)
    for name in TOKENIZER_FILES:
        try:
            content: bytes = patiently(
                f"reading {model}/{name}", partial(fs.cat_file, f"{root.rstrip('/')}/{name}")
            )
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"model {model}: {name} cannot be read: {describe_error(error)}") from error
        (to / name).write_bytes(content)
