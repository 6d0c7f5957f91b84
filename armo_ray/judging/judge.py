"""Judges by name or file."""

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path, PurePosixPath

from armo_ray.errors import ConfigError
from armo_ray.judging.judge_file import judge_of
from armo_ray.judging.specification import Judge

__all__ = ["BUILT_IN", "Judge", "load_judge"]

SUFFIX = ".toml"


def _built_in() -> dict[str, str]:
    """The text of each built-in judge's file, by name."""
    folder = files("armo_ray.judging").joinpath("built_in")
    texts = {
        file.name.removesuffix(SUFFIX): file.read_text("utf-8")
        for file in folder.iterdir()
        if file.name.endswith(SUFFIX)
    }
    return dict(sorted(texts.items()))


_TEXTS = _built_in()
# name -> one line of description
BUILT_IN: Mapping[str, str] = {
    name: str(tomllib.loads(text)["judge"]["description"]) for name, text in _TEXTS.items()
}


def load_judge(name: str) -> Judge:
    """The built-in judge of this name, or the one in a TOML file at a path or URI.

    Raises ConfigError that names the file, the key and what to write.
    """
    if name in _TEXTS:
        return _described(_TEXTS[name], name, name)
    if not name.endswith(SUFFIX):
        raise ConfigError(
            f"unknown judge {name}: expected one of {', '.join(_TEXTS)}, or a file that ends in {SUFFIX}"
        )
    try:
        text = _read(name)
    except OSError as error:
        raise ConfigError(f"judge {name}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"judge {name}: cannot be read: {error}") from error
    return _described(text, PurePosixPath(name).stem, name)


def _described(text: str, name: str, where: str) -> Judge:
    try:
        return judge_of(tomllib.loads(text), name)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"judge {where}: not valid TOML: {error}") from error
    except ValueError as error:  # ConfigError too
        raise ConfigError(f"judge {where}: {error}") from None


def _read(file: str) -> str:
    if "://" not in file:
        return Path(file).read_text("utf-8-sig")
    from armo_ray.storage.filesystem import read_text  # fsspec

    return read_text(file)
