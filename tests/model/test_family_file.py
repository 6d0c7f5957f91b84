"""A family that a file describes scores as its layers say, and is checked as strictly as the built-in ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from armo_ray import coefficients, vectors
from armo_ray.cli.main import main
from armo_ray.engine import RewardModel
from armo_ray.errors import ConfigError
from armo_ray.model.chat import Chat
from armo_ray.model.checkpoint import inspect
from armo_ray.model.family_file import family_of, identity_of, recorded
from armo_ray.text.conversations import Candidate
from armo_ray.text.tokenization import Encoder
from armo_ray.tiny.families import write_family
from tests.engine.test_engine import conversations
from tests.support.local import read_table, score_locally
from tests.support.paths import ROOT
from tests.support.published import head_of, ids_of, load, tokenizer_of

JUDGE = """
layers = ["judge.inner", "judge.outer"]
activation = "gelu"
labels = ["helpful", "safe"]
values = [1.0, -0.5]
append = "<|reserved_special_token_3|>"
"""
RATING = (ROOT / "jobs" / "samples" / "rating.toml").read_text("utf-8")


def written(folder: Path, text: str, name: str = "judge") -> str:
    (folder / f"{name}.toml").write_text(text, "utf-8")
    return str(folder / f"{name}.toml")


def test_a_described_head_scores_as_its_layers_and_token_say(tmp_path: Path) -> None:
    file = written(tmp_path, JUDGE)
    assert main(["tiny-model", str(tmp_path / "model"), "--family", file]) == 0
    model = RewardModel.load(str(tmp_path / "model"), dtype="float32", device="cpu", family=file)
    said = conversations()[:8]
    chat = Chat.load(tmp_path / "model", model.head.family)
    given = [Candidate(i, "response", prompt, answer) for i, (prompt, answer) in enumerate(said)]
    groups = Encoder(chat, 8192).encode(given).sequences()
    decoder, tokenizer = load(AutoModel, tmp_path / "model"), tokenizer_of(tmp_path / "model")
    tensors = head_of(tmp_path / "model")
    (mark,) = tokenizer.encode("<|reserved_special_token_3|>", add_special_tokens=False)
    expected = []
    with torch.inference_mode():
        for prompt, answer in said:
            ids = torch.cat((ids_of(tokenizer, prompt, answer), torch.tensor([[mark]])), dim=1)
            hidden = decoder(ids).last_hidden_state[0, -1]
            inner = tensors["judge.inner.weight"] @ hidden + tensors["judge.inner.bias"]
            outer = tensors["judge.outer.weight"] @ torch.nn.GELU()(inner) + tensors["judge.outer.bias"]
            expected.append(outer.numpy())
    for share in (True, False):
        actual = model.with_options(share_prompts=share).score(groups)
        assert np.abs(actual.rewards - expected).max() < 1e-5
        assert np.abs(actual.score - np.array(expected) @ [1.0, -0.5]).max() < 1e-5
    assert np.ptp(actual.score) > 1e-3


HEADS: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
    "missing": ({"judge.inner.bias": None}, "missing judge.inner.bias"),
    "one-too-many": ({"judge.third.weight": torch.zeros(2, 2)}, "unexpected judge.third.weight"),
    "a-known-head": ({"score.weight": torch.zeros(1, 64)}, "unexpected score.weight"),
    "mis-shaped": ({"judge.outer.weight": torch.zeros(2, 63)}, r"has shape \(2, 63\), expected \(2, 64\)"),
    "more-labels": ({"judge.outer.bias": torch.zeros(3)}, r"has shape \(3,\), expected \(2,\)"),
}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("judge")
    file = written(folder, JUDGE)
    write_family(folder / "model", file)
    return file, folder / "model"


@pytest.mark.parametrize(("changed", "fault"), HEADS.values(), ids=HEADS.keys())
def test_tensors_that_are_not_those_of_the_file_are_refused(
    changed: dict[str, torch.Tensor | None], fault: str, judge: tuple[str, Path], tmp_path: Path
) -> None:
    file, model = judge
    tensors = load_file(model / "model.safetensors") | changed
    save_file({k: t for k, t in tensors.items() if t is not None}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    with pytest.raises(ConfigError, match=f"not a complete head of the family judge: .*{fault}"):
        inspect(str(tmp_path), family=file)


def test_weights_of_a_described_head_are_all_part_of_the_fingerprint(
    judge: tuple[str, Path], tmp_path: Path
) -> None:
    file, model = judge
    tensors = load_file(model / "model.safetensors")
    before = inspect(str(model), family=file).fingerprint
    tensors["judge.inner.weight"][17, 3] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    assert inspect(str(tmp_path), family=file).fingerprint != before


FILES = {
    'layer = ["a"]': "unknown key layer; expected name, layers, bias",
    "labels = ['a']": "expected either layers, which have tensors, or tokens",
    'layers = ["a"]\ntokens = ["b"]': "expected either layers, which have tensors, or tokens",
    'layers = "a"': "layers is 'a': expected a list of names of linear layers",
    'layers = ["a", "a"]\nactivation = "relu"': "layers is .*: one of them is there twice",
    'layers = ["a", "b"]': "activation is the function between layers: expected with two",
    'layers = ["a"]\nactivation = "relu"': "activation is the function between layers: expected with two",
    'layers = ["a", "b"]\nactivation = "swish"': "activation is 'swish': expected one of relu, leaky_relu",
    'layers = ["a"]\nlabels = ["A b"]': "labels is .*: expected a list of lower-case names",
    'layers = ["a"]\nlabels = ["b"]\nvalues = [1, 2]': "values has 2 numbers, expected one for each of b",
    'layers = ["a"]\nvalues = [nan]': "values is .*: expected a list of finite numbers",
    'layers = ["a"]\nappend = ""': "append is '': expected the text of a token",
    'tokens = ["1", "2"]': "values has 0 numbers, expected one for each of label_1, label_2",
    'tokens = ["+", "-"]\nvalues = [1, 0]': "the tokens .* do not name their rewards: give labels",
    'tokens = ["1", "2"]\nlabels = ["a"]\nvalues = [1, 0]': "labels has 1 names, expected 2, one for each",
    'tokens = ["1"]\nbias = false': "bias is False: expected true or false, for layers",
    'name = "armorm"\nlayers = ["a"]': "name is 'armorm', by default that of the file: expected lower-case",
    "layers =": "not valid TOML",
}


@pytest.mark.parametrize(("text", "fault"), FILES.items())
def test_a_file_that_describes_no_head_is_refused_before_any_work(
    text: str, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match=f"judge.toml: {fault}"):
        family_of(file)
    assert main(["tiny-model", str(tmp_path / "model"), "--family", file]) == 2
    assert "judge.toml: " in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_file_that_is_not_there_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        family_of(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("text", [JUDGE, RATING, 'layers = ["a"]\nbias = false'])
def test_a_family_is_read_back_from_the_identity_of_a_run(text: str, tmp_path: Path) -> None:
    family = family_of(written(tmp_path, text))
    assert recorded(json.loads(json.dumps(identity_of(family)))) == family
    assert identity_of(family_of("classifier")) == {"family": "classifier"}


def test_a_run_belongs_to_the_description_of_its_family(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, RATING)
    write_family(tmp_path / "model", file)
    rows = [{"prompt": f"What is {k} + 2?", "response": f"It is {k + 2}."} for k in range(4)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def score(**options: Any) -> Any:
        return score_locally(tmp_path / "model", tmp_path / "in.jsonl", tmp_path / "out", **options)

    score(family=file, keep_text=True)
    table = read_table(tmp_path / "out")
    rewards = table["rewards"].combine_chunks()
    assert [field.name for field in rewards.type] == [*(f"label_{i}" for i in range(1, 6)), "label_mass"]
    assert np.abs((vectors(table) * coefficients(table)).sum(axis=1) - table["score"].to_numpy()).max() < 1e-6
    assert main(["explain", str(tmp_path / "out"), "highest"]) == 0
    assert "read: rewards, at the last token" in capsys.readouterr().out
    written(tmp_path, RATING.replace("[1, 2", "[0, 2"))
    with pytest.raises(ConfigError, match=r"family_file.values was \[1.0, 2.0, .*\], now \[0.0, 2.0, "):
        score(family=file, keep_text=True)
