"""armo-ray verify --model: a sound model passes in every dtype, and a broken one is told what is wrong with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from armo_ray.cli.main import main
from armo_ray.tiny.families import write_family
from armo_ray.verify.files import Check
from armo_ray.verify.model import verify_model
from armo_ray.verify.numbers import check_expected, check_ways
from tests.support.families import asked
from tests.support.paths import SAMPLE

HEAD = "model-00002-of-00002.safetensors"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def change_head(model: Path, change: Callable[[Tensors], None]) -> None:
    tensors = load_file(model / HEAD)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, model / HEAD)


def change_template(model: Path, old: str, new: str) -> None:
    path = model / "tokenizer_config.json"
    options = json.loads(path.read_text())
    assert old in options["chat_template"]
    options["chat_template"] = options["chat_template"].replace(old, new)
    path.write_text(json.dumps(options))


def failed(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if not check.passed}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sound_model_is_fit_to_score_with(
    dtype: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "--model", str(tiny_model), "--dtype", dtype, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "fit to score with" in printed
    for name in ("alone", "shared", "packed", "reversed"):
        assert f"ok    scored {name}" in printed
    assert "from float32" in printed


def test_a_recorded_model_is_recognized_and_one_with_swapped_rewards_is_not(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "values.json"
    arguments = ["verify", "--model", str(copy), "--dtype", "float32", "--device", "cpu"]
    assert main([*arguments, "--record", str(record)]) == 0
    assert main([*arguments, "--against", str(record)]) == 0

    def swap(tensors: Tensors) -> None:
        rows = tensors["regression_layer.weight"]
        tensors["regression_layer.weight"] = rows[[1, 0, *range(2, len(rows))]]

    change_head(copy, swap)
    capsys.readouterr()
    assert main([*arguments, "--against", str(record)]) == 1
    assert "FAIL  recorded values" in capsys.readouterr().out


def transposed(tensors: Tensors) -> None:
    tensors["reward_transform_matrix"] = tensors["reward_transform_matrix"].T


def swapped(tensors: Tensors) -> None:
    matrix = tensors["reward_transform_matrix"]
    tensors["reward_transform_matrix"] = matrix[[0, 1, 2, 4, 3, *range(5, len(matrix))]]


def rounded(tensors: Tensors) -> None:
    tensors |= {name: tensor.bfloat16() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "check", "told"),
    [
        (transposed, "head transform", "the matrix is transposed"),
        (swapped, "head transform", "row 3 (helpsteer_complexity)"),
        (rounded, "head types", "gating.layers.0.bias is stored as BF16"),
    ],
    ids=["transposed", "swapped", "bfloat16"],
)
def test_a_broken_head_is_told(change: Callable[[Tensors], None], check: str, told: str, copy: Path) -> None:
    change_head(copy, change)
    checks, record = verify_model(str(copy), dtype="float32", device="cpu")
    assert told in failed(checks)[check]
    assert record == {}  # what is known to be wrong is not scored with


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("bos_token + content", "bos_token + bos_token + content", "exactly one BOS token, found 2"),
        ("'<|eot_id|>'", "'<|eot_id|>\n'", "those of Llama 3 in"),
        ("message['content'] | trim", "message['content'] | upper", "it changes a question"),
    ],
    ids=["double-bos", "line-after-turn", "other-text"],
)
def test_a_broken_template_is_told(old: str, new: str, told: str, copy: Path) -> None:
    change_template(copy, old, new)
    found = failed(verify_model(str(copy), device="cpu")[0])
    assert told in found.get("files and template", found.get("token ids and gate", ""))


def test_a_model_of_the_released_name_must_be_the_released_one(tiny_model: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_model, tmp_path / "ArmoRM-Llama3-8B-v0.1")
    told = failed(verify_model(str(path), device="cpu")[0])["released configuration"]
    assert "hidden_size is 64, but 4096 in the released model" in told
    assert "but [128009, 128006, 78191, 128007, 271] in the released model" in told


@pytest.mark.parametrize(
    "values",
    [
        [],
        [{"place": [], "values": {"score": 1}}],
        [{"place": [0]}],
        [{"place": [0, 0], "values": {"score": "x"}}],
    ],
    ids=["none", "no-place", "no-values", "text"],
)
def test_a_record_that_is_none_is_refused_before_anything_is_scored(
    values: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "values.json"
    record.write_text(json.dumps({"dtype": "float32", "values": values}))
    assert main(["verify", "--model", "m", "--against", str(record)]) == 2
    assert "not a file that --record wrote" in capsys.readouterr().err


def test_rounding_is_let_pass_by_the_size_of_the_scores_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(10, 5, (50, 3))
    rounded = {name: exact * (1 + rng.uniform(-(2**-8), 2**-8, exact.shape)) for name in ("alone", "packed")}
    for known in (exact, None):
        assert all(check.passed for check in check_ways(rounded, known))
    noise = {name: rng.normal(5, 30, exact.shape) for name in ("alone", "packed")}
    assert [check.passed for check in check_ways(noise, exact)] == [False, False]
    assert [check.passed for check in check_ways(noise, None)] == [True, False]


def test_what_names_the_released_model_in_its_config_alone_may_differ_from_it(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["_name_or_path"] = "RLHFlow/ArmoRM-Llama3-8B-v0.1"
    (copy / "config.json").write_text(json.dumps(config))
    found = {check.name: check for check in verify_model(str(copy), dtype="float32", device="cpu")[0]}
    assert found["published values"].passed
    assert "not the released model's" in found["published values"].detail


def test_a_record_of_a_model_with_other_rewards_is_told_as_such() -> None:
    expected = {"values": [{"place": [0, 0], "values": {"score": 1.0, "honesty": 0.5}}]}
    found = check_expected("recorded", expected, {(0, 0): {"score": 1.0}}, exact=True)
    assert (found.passed, found.detail) == (
        False,
        "they belong to a model with other rewards, such as honesty",
    )


def test_published_values_are_held_against_their_own_tolerance() -> None:
    own = {(0, 0): {"score": 0.5, "a": 0.1}}
    expected: dict[str, Any] = {"values": [{"place": [0, 0], "tolerance": 0.01, "values": {"score": 0.508}}]}
    assert check_expected("published", expected, own, exact=False).passed
    expected["values"][0]["values"] = {"score": 0.508, "a": 0.12}
    found = check_expected("published", expected, own, exact=True)
    assert (found.passed, "2 values, 1 too far off" in found.detail) == (False, True)
    expected["values"] = [{"place": [9, 0], "values": {"a": 0.1}}, {"place": [0, 0], "values": {"a": 0.1}}]
    assert (
        "(conversation 9, a: None, expected 0.1)"
        in check_expected("published", expected, own, exact=True).detail
    )
    expected["values"][0]["values"] = {"b": 0.12}
    assert not check_expected("published", expected, own, exact=True).passed


@pytest.mark.parametrize(
    ("family", "backbone"),
    [
        ("qrm", "llama"),
        ("qrm", "gemma2"),
        ("classifier", "qwen2"),
        ("athene", "llama"),
        ("mlp-classifier", "qwen3"),
        ("urm", "llama"),
        ("eurus", "mistral"),
        ("starling", "llama"),
        ("orm-mistral", "mistral"),
        ("prm-deepseek", "llama"),
        ("prm-qwen", "qwen2"),
        ("pairwise", "llama"),
        ("worldpm", "qwen2"),
    ],
)
def test_a_sound_model_of_every_family_is_fit_to_score_with(
    family: str, backbone: str, tmp_path: Path
) -> None:
    write_family(tmp_path / "model", family, backbone)
    checks, record = verify_model(
        str(tmp_path / "model"), dtype="float32", device="cpu", family=asked(family)
    )
    assert failed(checks) == {}
    assert f"family {family}" in checks[0].detail
    assert len(record["values"]) >= 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give an output to check, or --model"),
        (["out", "--model", "m"], "give an output to check, or --model"),
        (["--model", "m", "--against", "/none.json"], "--against /none.json: cannot be read"),
        (["--model", "m", "--against", str(SAMPLE)], "not a file that --record wrote"),
        (["--model", "m", "--record", "/none/x.json"], "--record /none/x.json: no such directory"),
        (["out", "--dtype", "float32"], "can only be used with --model"),
        (["--model", "/none"], "model /none: no such directory"),
        (["out", "--against", "f"], "can only be used with --model"),
    ],
    ids=["nothing", "both", "no-file", "no-record", "no-place", "dtype", "no-model", "of-a-model"],
)
def test_misuse_is_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *arguments]) == 2
    assert message in capsys.readouterr().err
