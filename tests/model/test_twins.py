"""A checkpoint of every family that lacks a tensor, has one too many or is another family's twin is told from it."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from armo_ray.errors import ConfigError
from armo_ray.model.checkpoint import inspect
from armo_ray.model.families import FAMILIES
from armo_ray.model.recognize import HEAD_PREFIXES, expected_head
from armo_ray.tiny.families import write_family
from tests.support.families import asked

# Families whose tensors are those of the other one, which is taken if none is asked for: their texts differ.
TAKEN_FOR = {"worldpm": "mlp-classifier", "prm-reasonflux": "prm-qwen"}


def head_of(path: Path, family: str) -> dict[str, Any]:
    checkpoint = inspect(str(path), family=family)
    required, _ = expected_head(FAMILIES[family], checkpoint.config, checkpoint.shapes)
    return required


def rewrite(path: Path, tensors: dict[str, Any]) -> None:
    for file in path.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


def all_tensors(path: Path) -> dict[str, Any]:
    return {name: t for file in path.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.nightly
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_lacks_a_tensor_or_has_one_too_many_is_refused(family: str, tmp_path: Path) -> None:
    write_family(tmp_path, family)
    whole, head = all_tensors(tmp_path), head_of(tmp_path, family)
    assert head
    for name in head:
        rewrite(tmp_path, {other: tensor for other, tensor in whole.items() if other != name})
        for given in {asked(family), family}:
            with pytest.raises(ConfigError):
                inspect(str(tmp_path), family=given)
    first = next(iter(head))
    for prefix in HEAD_PREFIXES:
        extra = f"{prefix}extra"
        rewrite(tmp_path, {**whole, extra: whole[first].clone()})
        with pytest.raises(ConfigError, match=f"unexpected {extra}"):
            inspect(str(tmp_path), family=asked(family))
    rewrite(tmp_path, whole)
    assert inspect(str(tmp_path), family=asked(family)).family.name == family


@pytest.mark.nightly
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_of_another_shape_is_refused(family: str, tmp_path: Path) -> None:
    write_family(tmp_path, family)
    whole, head = all_tensors(tmp_path), head_of(tmp_path, family)
    for name in head:
        longer = whole[name].new_zeros([*whole[name].shape[:-1], whole[name].shape[-1] + 1])
        rewrite(tmp_path, {**whole, name: longer})
        with pytest.raises(ConfigError, match=r"shape|labels"):
            inspect(str(tmp_path), family=asked(family))


@pytest.mark.nightly
def test_a_model_of_one_family_is_not_taken_for_another_with_other_tensors(tmp_path: Path) -> None:
    for family in FAMILIES:
        write_family(tmp_path / family, family)
    for own in FAMILIES:
        path = str(tmp_path / own)
        if asked(own) is None:
            assert inspect(path).family.name == own
        elif own in TAKEN_FOR:
            assert inspect(path).family.name == TAKEN_FOR[own]
        else:
            with pytest.raises(ConfigError, match="--family"):
                inspect(path)
        head = head_of(tmp_path / own, own)
        for other in FAMILIES:
            try:
                taken = head_of(tmp_path / own, other)
            except ConfigError:
                continue
            assert set(taken) == set(head), (own, other)
