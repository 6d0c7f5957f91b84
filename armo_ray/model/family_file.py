"""Families that a user describes in a TOML file, checked as strictly as the built-in ones. Needs no torch."""

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from armo_ray.errors import ConfigError
from armo_ray.model.families import FAMILIES, HIDDEN, LABEL_MASS, Activation, Family

SUFFIX = ".toml"
_KEYS = ("name", "layers", "bias", "activation", "tokens", "labels", "values", "append")


def family_of(name: str) -> Family:
    """A built-in family by its name, or the one that a TOML file describes.

    Raises ConfigError if there is no such family or file, or if the file is not complete.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    if not name.endswith(SUFFIX):
        raise ConfigError(f"unknown family {name}: expected one of {', '.join(FAMILIES)}, or a TOML file")
    try:
        entries = tomllib.loads(Path(name).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{name}: not valid TOML: {error}") from error
    return described({"name": Path(name).stem, **entries}, name)


def described(entries: Mapping[str, Any], where: str) -> Family:
    """The family of these entries, named as in the file. Raises ConfigError that begins with `where`."""
    try:
        return _described(entries)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def identity_of(family: Family) -> dict[str, Any]:
    """What tells a family from others in a run's identity: its name, and the entries of its file."""
    if family in (HIDDEN, FAMILIES.get(family.name)):
        return {"family": family.name}
    return {"family": family.name, "family_file": _entries(family)}


def _entries(family: Family) -> dict[str, Any]:
    return {
        "name": family.name,
        "layers": list(family.layers),
        "tokens": list(family.tokens),
        "labels": list(family.labels),
        "values": list(family.values),
        **({"append": family.append} if family.append else {}),
        **({"bias": family.biased} if family.layers else {}),
        **({"activation": family.activation} if len(family.layers) > 1 else {}),
    }


def recorded(identity: Mapping[str, Any]) -> Family:
    """The family of a run, from the identity in its `_run.json`."""
    entries = identity.get("family_file")
    return FAMILIES[identity["family"]] if entries is None else described(entries, "_run.json: family_file")


def _described(entries: Mapping[str, Any]) -> Family:
    if unknown := sorted(entries.keys() - set(_KEYS)):
        raise ValueError(f"unknown key {unknown[0]}; expected {', '.join(_KEYS)}")
    name = entries["name"]
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or name in FAMILIES:
        raise ValueError(
            f"name is {name!r}, by default that of the file: expected lower-case letters, digits, ., - and _, and no "
            f"built-in family"
        )
    layers = _list(entries, "layers", lambda x: isinstance(x, str) and x != "", "names of linear layers")
    tokens = _list(
        entries, "tokens", lambda x: type(x) in (str, int) and x != "", "texts or row numbers of tokens"
    )
    if bool(layers) == bool(tokens):
        raise ValueError("expected either layers, which have tensors, or tokens, whose logits are read")
    labels = _labels(entries, tokens)
    values = _list(entries, "values", _is_finite, "finite numbers", distinct=False)
    if len(values) != len(labels) and (values or len(tokens) > 1):
        raise ValueError(f"values has {len(values)} numbers, expected one for each of {', '.join(labels)}")
    return Family(
        name,
        layers=layers,
        biased=_flag(entries, "bias", layers),
        activation=_activation(entries, layers),
        tokens=tokens,
        labels=labels,
        values=tuple(map(float, values)),
        append=_text(entries, "append"),
    )


def _list(
    entries: Mapping[str, Any], key: str, fits: Callable[[Any], bool], what: str, distinct: bool = True
) -> tuple[Any, ...]:
    found = entries.get(key, [])
    if not isinstance(found, list) or not all(map(fits, found)):
        raise ValueError(f"{key} is {found!r:.100}: expected a list of {what}")
    if distinct and len(set(found)) < len(found):
        raise ValueError(f"{key} is {found!r:.100}: one of them is there twice")
    return tuple(found)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _labels(entries: Mapping[str, Any], tokens: tuple[Any, ...]) -> tuple[str, ...]:
    """The labels that are given; else one reward, or labels made of the texts of several tokens."""
    if entries.get("labels"):
        what = "lower-case names of letters, digits and _"
        labels = _list(entries, "labels", lambda x: isinstance(x, str) and _is_name(x), what)
    elif len(tokens) < 2:
        labels = ("reward",)
    else:
        labels = tuple("label_" + re.sub(r"\W+", "_", str(token)).strip("_").lower() for token in tokens)
        if "label_" in labels or len(set(labels)) < len(labels):
            raise ValueError(f"the tokens {tokens} do not name their rewards: give labels")
    if tokens and len(labels) != len(tokens):
        raise ValueError(f"labels has {len(labels)} names, expected {len(tokens)}, one for each token")
    if LABEL_MASS in labels and tokens:
        raise ValueError(f"labels: {LABEL_MASS} is the name of another reward of this family")
    return labels


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[a-z_][a-z0-9_]*", text) is not None


def _flag(entries: Mapping[str, Any], key: str, layers: tuple[str, ...]) -> bool:
    found = entries.get(key, True)
    if not isinstance(found, bool) or (key in entries and not layers):
        raise ValueError(f"{key} is {found!r:.100}: expected true or false, for layers")
    return found


def _activation(entries: Mapping[str, Any], layers: tuple[str, ...]) -> Activation:
    known: dict[str, Activation] = {name: name for name in get_args(Activation)}
    found = entries.get("activation")
    if (found is None) != (len(layers) < 2):
        raise ValueError("activation is the function between layers: expected with two or more of them")
    if found is not None and found not in known:
        raise ValueError(f"activation is {found!r:.100}: expected one of {', '.join(known)}")
    return known[found or "relu"]


def _text(entries: Mapping[str, Any], key: str) -> str:
    found = entries.get(key, "-")
    if not isinstance(found, str) or not found:
        raise ValueError(f"{key} is {found!r:.100}: expected the text of a token")
    return found if key in entries else ""
