"""The hidden states that a head reads are those of transformers' own model, of any decoder, whatever head it has."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from armo_ray.engine import RewardModel
from armo_ray.engine.heads import HeadOutput, no_rewards
from armo_ray.errors import ConfigError
from armo_ray.model.chat import Chat
from armo_ray.model.families import FAMILIES, HIDDEN
from armo_ray.model.reference import Reference
from armo_ray.outputs.hidden import as_float32
from armo_ray.text.conversations import Candidate
from armo_ray.text.tokenization import Encoder
from armo_ray.tiny.families import BACKBONES, write_family
from tests.engine.test_engine import conversations
from tests.support.families import asked


def sequences(model: Path, count: int = 12) -> list[tuple[Any, list[Any]]]:
    """Conversations as groups of a prompt and one response; some share their prompt."""
    said = [entry for entry in conversations() if len(str(entry)) < 1500][:count]
    said += [(prompt, "Another answer.") for prompt, _ in said[:3]]
    candidates = [Candidate(i, "response", prompt, answer) for i, (prompt, answer) in enumerate(said)]
    done = Encoder(Chat.load(model, HIDDEN), 8192).encode(candidates)
    assert done.rejects == []
    return done.sequences()


def expected(model: Path, groups: list[tuple[Any, list[Any]]]) -> npt.NDArray[np.float32]:
    """The states (C, 2, H) of transformers' model at the end of the last user turn and at the last token, of one
    unpadded conversation at a time."""
    auto: Any = AutoModel
    backbone = auto.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    states, pattern = [], list(Chat.load(model, HIDDEN).response_pattern)
    for prompt, (response,) in groups:
        ids = [*prompt.tolist(), *response.tolist()]
        gate = max(i for i in range(len(ids)) if ids[i : i + len(pattern)] == pattern)
        with torch.inference_mode():
            hidden = backbone(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
        states.append(hidden[[gate, -1]].float().numpy())
    return np.stack(states)


def load(model: Path, dtype: str = "float32", **options: Any) -> RewardModel:
    given: dict[str, Any] = {
        "dtype": dtype,
        "device": "cpu",
        "family": HIDDEN,
        "keep_hidden": True,
        "token_budget": 900,
    }
    return RewardModel.load(str(model), **(given | options))


def states_of(model: RewardModel, groups: Any) -> npt.NDArray[Any]:
    hidden = model.score(groups).hidden
    assert hidden is not None
    return hidden


@pytest.mark.parametrize("backbone", BACKBONES)
def test_states_of_a_language_model_are_those_of_transformers(backbone: str, tmp_path: Path) -> None:
    write_family(tmp_path, "dpo", backbone)
    groups = sequences(tmp_path)
    model = load(tmp_path)
    scores = model.score(groups)
    assert (scores.rewards.shape, scores.gating.shape) == ((len(groups), 0), (len(groups), 0))
    assert scores.num_packs > 2
    wanted = expected(tmp_path, groups)
    np.testing.assert_allclose(states_of(model, groups), wanted, atol=1e-5)
    for options in ({"token_budget": 8192}, {"fixed_packs": True}, {"share_prompts": False}):
        np.testing.assert_allclose(states_of(model.with_options(**options), groups), wanted, atol=1e-5)


DAILY = ("armorm", "classifier", "ldl", "token-logit", "prm-qwen")
DECODERS = [
    name for name, f in FAMILIES.items() if not (f.bidirectional or f.template) and name != "starling"
]


@pytest.mark.parametrize(
    "family", [name if name in DAILY else pytest.param(name, marks=pytest.mark.nightly) for name in DECODERS]
)
def test_states_of_any_reward_model_are_those_of_its_decoder(family: str, tmp_path: Path) -> None:
    write_family(tmp_path, family)
    groups = sequences(tmp_path, 2)
    wanted = expected(tmp_path, groups)
    np.testing.assert_allclose(states_of(load(tmp_path), groups), wanted, atol=1e-5)


def test_tensors_of_an_unknown_head_are_left_out_but_those_of_another_decoder_are_refused(
    tmp_path: Path,
) -> None:
    write_family(tmp_path, "dpo")
    groups, file = sequences(tmp_path, 2), tmp_path / "model.safetensors"
    wanted, tensors = states_of(load(tmp_path), groups), load_file(file)
    save_file(tensors | {"critic.layers.0.weight": torch.ones(3, 64)}, file, {"format": "pt"})
    np.testing.assert_array_equal(states_of(load(tmp_path), groups), wanted)
    bare = {n.removeprefix("model."): t for n, t in tensors.items() if not n.startswith("lm_head")}
    save_file(bare, file, {"format": "pt"})  # as AutoModel saves it
    np.testing.assert_array_equal(states_of(load(tmp_path), groups), wanted)
    extra = "model.layers.0.self_attn.q_norm.weight"
    save_file(tensors | {extra: torch.ones(16)}, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=rf"unexpected: \['{extra}'\]"):
        load(tmp_path)
    save_file(bare | {extra.removeprefix("model."): torch.ones(16)}, file, {"format": "pt"})
    with pytest.raises(ConfigError, match="unexpected"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_states_keep_all_bits_of_the_backbones_type(dtype: str, tmp_path: Path) -> None:
    write_family(tmp_path, "classifier")
    groups = sequences(tmp_path, 6)
    model = load(tmp_path, dtype)
    raw = states_of(model, groups)
    assert raw.dtype == (np.uint16 if dtype == "bfloat16" else np.float16)
    kept: list[torch.Tensor] = []

    def compute(hidden: torch.Tensor, index: torch.Tensor, lengths: torch.Tensor) -> HeadOutput:
        kept.append(hidden.index_select(0, index))
        return no_rewards(hidden, index, lengths)

    whole = model.with_options(token_budget=1 << 14)
    whole.head = replace(model.head, compute=compute)
    again = as_float32(states_of(whole, groups)).reshape(-1, 64)
    (hidden,) = kept
    assert hidden.dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(np.sort(again, axis=0), np.sort(hidden.float().numpy(), axis=0))
    wanted = expected(tmp_path, groups)
    np.testing.assert_allclose(as_float32(raw), wanted, atol=0.1 if dtype == "bfloat16" else 0.02)


@pytest.mark.parametrize("family", ["armorm", "qrm", "urm", "classifier", "starling", "grm", "token-logit"])
def test_keeping_states_leaves_scores_as_they_are(family: str, tmp_path: Path) -> None:
    write_family(tmp_path, family)
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "family": asked(family)}
    plain = RewardModel.load(str(tmp_path), **options)
    kept = RewardModel.load(str(tmp_path), keep_hidden=True, **options)
    encoder = Encoder(Chat.load(tmp_path, plain.head.family), 8192)
    said = [entry for entry in conversations() if len(str(entry)) < 900][:6]
    groups = encoder.encode([Candidate(i, "response", *one) for i, one in enumerate(said)]).sequences()
    before, after = plain.score(groups), kept.score(groups)
    assert before.hidden is None
    for name in ("score", "rewards", "gating"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    assert after.hidden is not None
    assert after.hidden.shape == (6, 1 + (plain.head.family.reads == "gate"), 64)


@pytest.mark.parametrize("family", ["prm-qwen", "pairwise", "dpo", "deberta", "pairrm", "prm-mistral"])
def test_a_family_that_reads_other_states_has_none_to_keep(family: str, tmp_path: Path) -> None:
    write_family(tmp_path, family)
    with pytest.raises(ConfigError, match=f"keep-hidden: the family {family} does not read one hidden state"):
        RewardModel.load(
            str(tmp_path),
            dtype="float32",
            family=asked(family),
            reference=Reference(str(tmp_path)) if family == "dpo" else None,
            keep_hidden=True,
        )


@pytest.mark.parametrize(
    ("family", "message"), [("deberta", "chat template"), ("starling", "must begin with exactly one BOS")]
)
def test_a_model_whose_template_a_head_could_not_read_later_is_refused(
    family: str, message: str, tmp_path: Path
) -> None:
    write_family(tmp_path, family)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)
