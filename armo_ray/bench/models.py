"""The model that is measured: a checkpoint, or random weights of a given shape created on the device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armo_ray.bench.options import Settings
from armo_ray.bench.smollm2 import ensure_smollm2
from armo_ray.bench.workloads import Vocabulary
from armo_ray.engine import RewardModel
from armo_ray.engine.backbone import DTYPES, place
from armo_ray.engine.heads import Head, armorm
from armo_ray.engine.llama import Llama
from armo_ray.engine.llama_config import read_config
from armo_ray.engine.options import Options
from armo_ray.engine.reward_model import TOKEN_BUDGETS
from armo_ray.model.chat import Chat
from armo_ray.model.checkpoint import resolve
from armo_ray.model.families import FAMILIES
from armo_ray.model.recognize import ARMORM_REWARDS
from armo_ray.tiny.armorm import CONFIG, random_head

KEPT_SMOLLM2 = Path(".bench/smollm2")
_SHAPES = {
    "llama3-8b": {
        "gating_hidden_dim": 1024,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128257,
    },
    "llama3-70b-layer": {  # one of its 80 layers
        "gating_hidden_dim": 1024,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "max_position_embeddings": 8192,
        "num_attention_heads": 64,
        "num_hidden_layers": 1,
        "num_key_value_heads": 8,
        "vocab_size": 128257,
    },
    "tiny": {
        "gating_hidden_dim": 32,
        "hidden_size": 64,
        "intermediate_size": 128,
        "max_position_embeddings": 8192,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
}
_LLAMA3 = Vocabulary(np.arange(128_000, dtype=np.int32), 128_000, (128_009, 128_006, 78_191, 128_007, 271))
_VOCABULARIES = {
    "llama3-8b": _LLAMA3,
    "llama3-70b-layer": _LLAMA3,
    "tiny": Vocabulary(np.arange(500, dtype=np.int32), 500, (509, 506, 191, 507, 271)),
}


@dataclass(frozen=True)
class Subject:
    """The model that is measured."""

    name: str  # for the report
    model: RewardModel
    vocabulary: Vocabulary
    path: Path | None = None  # its directory; None for random weights


def load(settings: Settings, dtype: str, device: torch.device) -> Subject:
    """Load or create the model that the settings name."""
    if settings.shape:
        return _random(settings.shape, dtype, device, settings.token_budget, settings.seed)
    source = settings.model or str(ensure_smollm2(KEPT_SMOLLM2))
    name = settings.model or "SmolLM2-135M-Instruct with a random head"
    path, revision = resolve(source, settings.revision)
    model = RewardModel.load(str(path), dtype=dtype, device=str(device), token_budget=settings.token_budget)
    return Subject(f"{name} @ {revision}" if revision else name, model, vocabulary_of(Chat.load(path)), path)


def vocabulary_of(chat: Chat) -> Vocabulary:
    """The token ids of a tokenizer: those of ordinary text, BOS, and the end of a user turn."""
    added = chat.tokenizer.get_added_tokens_decoder()
    special = {i for i, token in added.items() if token.special}
    text = [i for i in range(chat.tokenizer.get_vocab_size()) if i not in special]
    bos = chat.tokenizer.token_to_id(chat.special_tokens.get("bos_token", ""))
    return Vocabulary(np.array(text, np.int32), bos, chat.response_pattern)


def _random(shape: str, dtype: str, device: torch.device, token_budget: int | None, seed: int) -> Subject:
    fields: dict[str, Any] = CONFIG | _SHAPES[shape]
    fields |= {"gating_n_hidden": 3, "num_objectives": len(ARMORM_REWARDS)}
    vocabulary = _VOCABULARIES[shape]
    torch.manual_seed(seed)
    config = read_config(fields)
    assert config is not None, "the shapes are those of a Llama"
    backbone = Llama(config)
    backbone.load_state_dict(_random_weights(backbone, DTYPES[dtype], device), assign=True)
    place(backbone, [device])
    head = random_head(fields, torch.Generator().manual_seed(seed))
    compute = armorm({name: tensor.to(device) for name, tensor in head.items()}, fields["gating_temperature"])
    model = RewardModel(
        backbone.eval(),
        Head(ARMORM_REWARDS, FAMILIES["armorm"], np.array(vocabulary.pattern, np.int32), compute),
        Options(token_budget or TOKEN_BUDGETS[device.type]),
    )
    return Subject(f"random weights, {shape}", model, vocabulary)


def _random_weights(backbone: Llama, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    """Weights like those of an untrained model: norms are ones."""
    weights = {}
    for name, tensor in backbone.state_dict().items():
        weight = torch.empty(tensor.shape, dtype=dtype, device=device)
        weights[name] = weight.normal_(std=0.02) if weight.dim() > 1 else weight.fill_(1)
    return weights
