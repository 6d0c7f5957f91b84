"""Layers on several devices."""

from pathlib import Path

import numpy as np
import pytest
import torch

from armo_ray.engine import RewardModel
from armo_ray.engine.backbone import place
from armo_ray.engine.decoder import hidden_rows, layer_devices
from armo_ray.engine.packing import make_packs
from armo_ray.errors import ConfigError
from armo_ray.score.config import ScoreConfig
from armo_ray.score.gpus import _sum_of, room_for
from tests.support.architectures import random_groups, write_architecture

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deep")
    write_architecture(path, model_type="llama", num_hidden_layers=5)
    return path


def load(path: Path, device: str) -> RewardModel:
    return RewardModel.load(str(path), dtype="float32", device=device, token_budget=700)


@pytest.mark.parametrize("needed", [True, False], ids=["needed-rows", "all-rows"])
def test_layers_on_several_devices_give_the_same_bits(deep_model: Path, needed: bool) -> None:
    whole, split = (load(deep_model, device) for device in ("cpu", "cpu,cpu,cpu"))
    groups = random_groups(whole.pattern)
    expected, actual = (model.with_options(needed_rows=needed).score(groups) for model in (whole, split))
    for name in ("score", "rewards", "gating"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))


def test_each_device_gets_an_equal_number_of_consecutive_layers(deep_model: Path) -> None:
    backbone = load(deep_model, "cpu").backbone
    place(backbone, [CPU, META])
    assert layer_devices(backbone) == [CPU, CPU, CPU, META, META]
    where = {name: tensor.device for name, tensor in backbone.named_parameters()}
    assert where["embed_tokens.weight"] == CPU
    assert where["norm.weight"] == META


@pytest.mark.parametrize("needed", [True, False], ids=["needed-rows", "all-rows"])
def test_a_pass_moves_everything_that_a_layer_needs_to_its_device(deep_model: Path, needed: bool) -> None:
    model = load(deep_model, "cpu").with_options(needed_rows=needed)
    place(model.backbone, [CPU, META])  # an operation on tensors of both raises
    ids = np.arange(100, dtype=np.int32)
    (pack,) = make_packs([ids, ids[:60]], [[5, 99], [5, 59]], 700)
    hidden = hidden_rows(model.backbone, pack, np.unique(pack.read_index), model.options)
    assert hidden.device == META
    assert hidden.shape == (3, model.backbone.config.hidden_size)


def test_what_cannot_be_split_is_refused(deep_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="5 layers on 6 devices"):
        load(deep_model, "cpu,cpu,cpu,cpu,cpu,cpu")
    write_architecture(tmp_path, model_type="granite")
    with pytest.raises(ConfigError, match="layers of GraniteDecoderLayer cannot be split over 2 devices"):
        load(tmp_path, "cpu,cpu")


@pytest.mark.parametrize(
    ("gpus", "nodes", "room"),
    [
        (1, [4, 0, 2], 6),
        (2, [1, 1], 0),
        (2, [4, 3, 0], 3),
        (0.5, [1, 2], 6),
        (0.4, [2], 4),  # no replica is on two GPUs
    ],
)
def test_a_replica_lies_on_one_node_and_a_fraction_of_one_on_one_gpu(
    gpus: float, nodes: list[float], room: int
) -> None:
    assert room_for(gpus, nodes) == room


def test_the_gpus_of_nodes_are_told_by_node_most_first() -> None:
    assert [_sum_of(nodes) for nodes in ([1, 3, 0], [3], [0])] == ["3 + 1", "3", "no"]


def test_more_than_one_gpu_is_a_whole_number_of_them() -> None:
    given = {"input": ("in",), "output": "out", "model": "m"}
    assert ScoreConfig.model_validate({**given, "gpus_per_replica": 2}).gpus_per_replica == 2
    with pytest.raises(ValueError, match="whole number"):
        ScoreConfig.model_validate({**given, "gpus_per_replica": 1.5})
