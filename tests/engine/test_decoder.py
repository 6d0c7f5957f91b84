"""Every option of the decoder gives the scores of transformers' eager attention, with any decoder."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from armo_ray.engine import RewardModel
from armo_ray.errors import ConfigError
from armo_ray.tiny.armorm import write_tiny_model
from tests.support.architectures import random_groups, write_architecture
from tests.support.reference import Reference, Scored

ROPE = {"rope_theta": 10_000.0, "original_max_position_embeddings": 64}
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | ROPE
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-biases-gelu": {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    "llama-unknown-gelu": {"hidden_act": "gelu_new"},
    "llama-tensor-parallel": {"pretraining_tp": 2},
    "llama-odd-heads": {"head_dim": 24, "num_attention_heads": 4, "num_key_value_heads": 1},
    "llama-one-layer": {"num_hidden_layers": 1},
    "llama-llama3-rope": {"rope_parameters": LLAMA3_ROPE},
    "llama-yarn-rope": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0} | ROPE},
    "llama-linear-rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 32},
    "mistral-wide-window": {"model_type": "mistral", "sliding_window": 8192},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "qwen3-biases-window": {
        "model_type": "qwen3",
        "head_dim": 16,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "num_hidden_layers": 3,
    },
    "olmo2": {"model_type": "olmo2"},
    "granite": {"model_type": "granite", "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "mistral-window": {"model_type": "mistral", "sliding_window": 64},
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 64,
        "max_window_layers": 1,
        "num_hidden_layers": 3,
    },
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 0.5,
    },
    "gemma2-window": {"model_type": "gemma2", "head_dim": 16, "sliding_window": 64},
    "gemma2-no-softcap": {"model_type": "gemma2", "head_dim": 16, "attn_logit_softcapping": None},
}


class Case(NamedTuple):
    model: RewardModel
    expected: list[Scored]


@pytest.fixture(scope="module", params=list(ARCHITECTURES.values()), ids=list(ARCHITECTURES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    path = tmp_path_factory.mktemp("model")
    write_architecture(path, **request.param)
    reference = Reference(path)
    model = RewardModel.load(str(path), dtype="float32", device="cpu", token_budget=700)
    whole = [[*prompt, *answer] for prompt, answers in random_groups(model.pattern) for answer in answers]
    return Case(model, [reference.score_ids([int(i) for i in ids]) for ids in whole])


@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
@pytest.mark.parametrize("needed", [True, False], ids=["needed-rows", "all-rows"])
def test_switches_never_move_a_score(case: Case, needed: bool, share: bool) -> None:
    model = case.model.with_options(needed_rows=needed, share_prompts=share)
    actual = model.score(random_groups(model.pattern))
    assert actual.num_packs > 1
    for i, (score, rewards, gating) in enumerate(case.expected):
        assert abs(actual.score[i] - score) < 1e-5
        assert np.abs(actual.rewards[i] - rewards).max() < 1e-5
        assert np.abs(actual.gating[i] - gating).max() < 1e-5


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")  # torch.compile's own imports
def test_compiled_functions_serve_all_layers_and_packs_of_any_size(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, num_layers=3)
    plain = RewardModel.load(str(tmp_path), dtype="float32", device="cpu", token_budget=500)
    groups = random_groups(plain.pattern)
    expected = plain.score(groups)
    compiled = plain.with_options(compile=True)
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        actual = [compiled.with_options(token_budget=n).score(groups) for n in (300, 500, 4096)]
        short = compiled.score(random_groups(plain.pattern, lengths=(1,))[:1])
    assert counters["stats"]["unique_graphs"] == 2  # one before attention and one after it
    assert len({scores.num_packs for scores in actual}) == 3
    assert max(np.abs(scores.score - expected.score).max() for scores in actual) < 1e-5
    assert abs(short.score[0] - plain.score(random_groups(plain.pattern, lengths=(1,))[:1]).score[0]) < 1e-5


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "linear-attention": (
        {"layer_types": ["linear_attention", "full_attention"]},
        "layer_types linear_attention: packs support full",
    ),
    "both-directions": ({"is_causal": False}, "is_causal false: in a pack, a token sees no later"),
    "dynamic-rope": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0} | ROPE},
        "rope_type dynamic would depend on",
    ),
    "long-rope": (
        {
            "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
            | ROPE
        },
        "rope_type longrope would depend on",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_decoder_that_packs_would_compute_wrong_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_tiny_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ConfigError, match=f"config.json: {message}"):
        RewardModel.load(str(tmp_path), dtype="float32", device="cpu")


def test_a_decoder_that_takes_no_attention_function_is_refused(tmp_path: Path) -> None:
    write_architecture(tmp_path, model_type="gpt_neox_japanese")
    with pytest.raises(ConfigError, match="GPTNeoXJapaneseModel cannot run on packs"):
        RewardModel.load(str(tmp_path), dtype="float32", device="cpu")
