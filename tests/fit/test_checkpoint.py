"""A fitted head and its backbone become a checkpoint that scores as the formula says, whatever head was there."""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForSequenceClassification

from armo_ray.engine import RewardModel
from armo_ray.errors import ConfigError
from armo_ray.fit.checkpoint import FittedHead, dropped_tensors, link_or_copy, write_checkpoint
from armo_ray.model.checkpoint import Checkpoint, inspect
from armo_ray.tiny.families import write_family
from armo_ray.verify.model import verify_model

NAMES = ("clear", "kind", "long")
H = 64
Array = npt.NDArray[Any]
SOURCES = {  # family, backbone, and the name by which its files are inspected
    "armorm": ("armorm", "llama", None),
    "classifier": ("classifier", "llama", None),
    "language-model": ("token-logit", "llama", "token-logit"),
    "qwen2": ("classifier", "qwen2", None),
    "qwen2-language-model": ("token-logit", "qwen2", "token-logit"),
    "tied": ("token-logit", "qwen2", "token-logit"),
}


def a_head(depth: int = 1, kind: Any = "armorm") -> FittedHead:
    rng = np.random.default_rng(0)
    if kind == "bradley-terry":
        return FittedHead(kind, ("reward",), rng.normal(size=(1, H)) * 0.1, np.eye(1))
    widths = [H, *[8] * depth, len(NAMES)]
    layers = tuple((rng.normal(size=(b, a)) * 0.3, rng.normal(size=b)) for a, b in pairwise(widths))
    transform = np.eye(len(NAMES)) - 0.2 * np.tri(len(NAMES), k=-1)
    return FittedHead(kind, NAMES, rng.normal(size=(3, H)) * 0.1, transform, layers, 10.0)


def source(name: str, folder: Path) -> Checkpoint:
    family, backbone, asked = SOURCES[name]
    fields = {"tie_word_embeddings": True} if name == "tied" else {}
    write_family(folder / "source", family, backbone, **fields)
    return inspect(str(folder / "source"), family=asked)


def by_formula(head: FittedHead, last: Array, gate: Array) -> tuple[Array, float]:
    """Rewards and score, from one hidden state each, in float64."""
    rewards = head.weights @ last
    if head.kind == "bradley-terry":
        return rewards, float(rewards[0])
    x = gate
    for i, (weight, bias) in enumerate(head.layers):
        x = weight @ (np.maximum(x, 0) if i else x) + bias
    odds = np.exp(x / head.temperature)
    return rewards, float((rewards @ head.transform) @ (odds / odds.sum()))


@pytest.mark.parametrize("kind", ["armorm", "bradley-terry"])
@pytest.mark.parametrize("name", SOURCES)
def test_what_is_written_scores_as_the_formula_says(name: str, kind: str, tmp_path: Path) -> None:
    checkpoint, head = source(name, tmp_path), a_head(kind=kind)
    write_checkpoint(checkpoint, head, tmp_path / "fitted", {"README.md": "A card."})
    model = RewardModel.load(str(tmp_path / "fitted"), dtype="float32", device="cpu")
    assert model.head.family.name == {"armorm": "armorm", "bradley-terry": "classifier"}[kind]
    assert model.reward_names == head.names
    prompt, answers = [*range(300, 330), *model.pattern.tolist()], [[5, 6, 7], [9, 8, 7, 6]]
    scores = model.score([(prompt, answers)])
    auto: Any = AutoModel
    backbone = auto.from_pretrained(tmp_path / "source", dtype=torch.float32).eval()
    for i, answer in enumerate(answers):
        with torch.no_grad():
            hidden = backbone(torch.tensor([prompt + answer])).last_hidden_state[0].double().numpy()
        rewards, score = by_formula(head, hidden[-1], hidden[len(prompt) - len(model.pattern)])
        assert scores.rewards[i] == pytest.approx(rewards, abs=1e-5)
        assert scores.score[i] == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("name", SOURCES)
def test_no_tensor_of_another_head_is_left_and_the_backbone_is_the_same_bytes(
    name: str, tmp_path: Path
) -> None:
    checkpoint = source(name, tmp_path)
    dropped = dropped_tensors(checkpoint)
    write_checkpoint(checkpoint, a_head(), tmp_path / "fitted", {})
    written = inspect(str(tmp_path / "fitted"))
    own = {t for t in written.tensors if not t.startswith("model.")}
    assert own == {t for t in written.tensors if t.startswith(("regression", "reward_", "gating."))}
    assert dropped == sorted(t for t in checkpoint.tensors if not t.startswith("model."))
    for tensor in checkpoint.tensors.keys() - set(dropped):
        assert np.array_equal(written.read(tensor), checkpoint.read(tensor))
        assert written.tensors[tensor].dtype == checkpoint.tensors[tensor].dtype
    with safe_open(tmp_path / "fitted" / "head.safetensors", "np") as file:
        assert {str(file.get_tensor(n).dtype) for n in file.keys()} == {"float32"}  # noqa: SIM118


def test_a_model_that_is_saved_again_in_place_leaves_the_checkpoint_as_it_was(
    tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "source")
    write_checkpoint(inspect(str(tmp_path / "source")), a_head(), tmp_path / "fitted", {})
    name = "model-00001-of-00002.safetensors"
    with (tmp_path / "source" / name).open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"8" * 8)
    assert (tmp_path / "fitted" / name).read_bytes() == (tiny_model / name).read_bytes()
    assert not (tmp_path / "fitted" / "model-00002-of-00002.safetensors").exists()


def test_a_file_of_the_cache_is_linked_not_copied(tmp_path: Path) -> None:
    blob, snapshot = tmp_path / "hub" / "blobs" / "0", tmp_path / "hub" / "snapshots" / "model.safetensors"
    for folder in (blob.parent, snapshot.parent):
        folder.mkdir(parents=True)
    blob.write_bytes(b"x")
    snapshot.symlink_to(blob)
    link_or_copy(snapshot, tmp_path / "linked", [tmp_path / "hub"])
    link_or_copy(snapshot, tmp_path / "copied", [tmp_path / "other"])
    assert (tmp_path / "linked").samefile(blob)
    assert not (tmp_path / "linked").is_symlink()
    assert not (tmp_path / "copied").samefile(blob)
    assert (tmp_path / "copied").read_bytes() == b"x"


@pytest.mark.parametrize("depth", [0, 2])
def test_a_gate_of_any_depth_passes_verify(depth: int, tmp_path: Path) -> None:
    write_checkpoint(source("language-model", tmp_path), a_head(depth), tmp_path / "fitted", {})
    checks, _ = verify_model(str(tmp_path / "fitted"), dtype="float32", device="cpu")
    assert [check for check in checks if not check.passed] == []


@pytest.mark.parametrize("name", ["classifier", "qwen2-language-model"])
def test_transformers_loads_a_bradley_terry_head_and_not_a_random_one(name: str, tmp_path: Path) -> None:
    head = a_head(kind="bradley-terry")
    write_checkpoint(source(name, tmp_path), head, tmp_path / "fitted", {})
    auto: Any = AutoModelForSequenceClassification
    model, report = auto.from_pretrained(tmp_path / "fitted", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.score.weight.float().detach().numpy() == pytest.approx(head.weights, rel=1e-2)
    assert model.num_labels == 1


def test_the_config_of_a_llama_names_the_released_code(tiny_model: Path, tmp_path: Path) -> None:
    write_checkpoint(inspect(str(tiny_model)), a_head(), tmp_path / "fitted", {})
    config = json.loads((tmp_path / "fitted" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForRewardModelWithGating"]
    assert config["auto_map"]["AutoModelForSequenceClassification"].startswith(
        "RLHFlow/ArmoRM-Llama3-8B-v0.1--"
    )
    assert (config["num_objectives"], config["objectives"]) == (3, list(NAMES))


def test_an_output_that_is_not_empty_is_refused_and_left_as_it_is(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "fitted").mkdir()
    (tmp_path / "fitted" / "mine").write_text("x")
    with pytest.raises(ConfigError, match=r"fitted: exists and is not an empty directory"):
        write_checkpoint(inspect(str(tiny_model)), a_head(), tmp_path / "fitted", {})
    assert [p.name for p in tmp_path.iterdir()] == ["fitted"]
    assert (tmp_path / "fitted" / "mine").read_text() == "x"


def test_a_failure_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_checkpoint(inspect(str(tiny_model)), a_head(), tmp_path / "fitted", {"no/such/folder": "x"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("objectives", "fault"),
    [
        (["a", "b"], "objectives has 2 names, but num_objectives is 3"),
        (["a", "b", "a"], "found 'a' 2 times"),
        (["a", "b", "-"], "found '' 1 times"),
        ("abc", "expected a list of names"),
    ],
)
def test_objectives_that_do_not_name_every_reward_are_refused(
    objectives: Any, fault: str, tiny_model: Path, tmp_path: Path
) -> None:
    write_checkpoint(inspect(str(tiny_model)), a_head(), tmp_path / "fitted", {})
    file = tmp_path / "fitted" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"objectives": objectives}))
    with pytest.raises(ConfigError, match=fault):
        inspect(str(tmp_path / "fitted"))
