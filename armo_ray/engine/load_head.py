"""Loading of a checkpoint's head onto a device."""

import numpy as np
import torch
from safetensors import safe_open

from armo_ray.engine import heads
from armo_ray.engine.heads import Compute, Head
from armo_ray.errors import ConfigError
from armo_ray.model.chat import Chat
from armo_ray.model.checkpoint import Checkpoint
from armo_ray.model.families import HIDDEN
from armo_ray.model.head_shapes import LDL_LEVELS
from armo_ray.model.label_tokens import token_rows
from armo_ray.model.recognize import EMBEDDINGS, LM_HEAD, expected_head
from armo_ray.model.reference import Reference
from armo_ray.model.steps import read_pattern

# The verdicts of judging models, for each kind of text: the good one, or the first response, comes first.
_VERDICTS = {"outcome": ("+", "-"), "steps": ("+", "-"), "prose": ("+", "-"), "pairs": ("A", "B")}


def read_head(
    checkpoint: Checkpoint, chat: Chat, device: torch.device, reference: Reference | None = None
) -> Head:
    """The head of a checkpoint that `inspect` checked. Raises ConfigError if a verdict or mark is not one token.

    With a reference model, the head takes the log ratio of each token that is read instead of its hidden state.
    """
    family = checkpoint.family
    compute: Compute
    if family == HIDDEN:
        compute = heads.no_rewards
    elif reference is not None:
        factor = reference.factor(family)
        each = heads.of_tokens(factor)
        compute = each if family.by_step else heads.summed(factor, reference.length_normalized)
    elif family.tokens:
        compute = _token_logits(checkpoint, chat, device)
    else:
        compute = (_judge if family.reads_logits else _regression)(checkpoint, chat, device)
    pattern = np.array(read_pattern(chat), np.int32)
    return Head(checkpoint.reward_names, family, pattern, compute)


def _regression(checkpoint: Checkpoint, chat: Chat, device: torch.device) -> Compute:
    """A head that has its own tensors."""
    family, config = checkpoint.family, checkpoint.config
    name = family.name
    expected, optional = expected_head(family, config, checkpoint.shapes)
    biases = [n for n in optional if n in checkpoint.tensors and n.endswith(".bias")]
    tensors = {n: torch.from_numpy(checkpoint.read(n)).to(device) for n in (*expected, *biases)}
    if name == "armorm":
        return heads.armorm(tensors, float(config["gating_temperature"]))
    if name == "qrm":
        return heads.qrm(tensors, float(config.get("gating_temperature", 10)), int(config["num_quantiles"]))
    if name == "urm":
        return heads.urm(tensors)
    if name in ("prm-qwen", "prm-reasonflux"):
        return heads.step_labels(heads.relu_mlp(tensors, ["score.0", "score.2"]))
    if name == "prm-skywork":
        return heads.step_values(heads.relu_mlp(tensors, family.layers))
    if name == "pairrm":
        return heads.better_of_two(heads.interleaved(tensors, ["head_layer.1", "head_layer.4"], torch.tanh))
    if name == "ldl":
        softmax = bool(config.get("softmax", False))
        return heads.ldl(tensors, LDL_LEVELS, float(config.get("temperature", 1.0)), softmax)
    layers = {
        "classifier": ["score"],
        "mlp-classifier": ["score.0", "score.2"],
        "value-head": ["v_head"],
        "starling": ["v_head"],
        "beaver-reward": ["score_head"],
        "beaver-cost": ["score_head"],
    }.get(name, family.layers)
    chain = heads.interleaved(tensors, layers, getattr(torch.nn.functional, family.activation))
    if "normalizer.var" in tensors:
        shift = tensors["normalizer.mean"] if name == "beaver-reward" else 0.0  # a cost keeps its sign
        chain = [*chain, heads.normalized(shift, tensors["normalizer.var"])]
    return heads.labels(chain, _coefficients(checkpoint, device))


def _coefficients(checkpoint: Checkpoint, device: torch.device) -> torch.Tensor:
    return torch.tensor(checkpoint.coefficients, dtype=torch.float32, device=device)


def _token_logits(checkpoint: Checkpoint, chat: Chat, device: torch.device) -> Compute:
    """A head made of the rows of some tokens in the language-model head."""
    name, softcap = _lm_head(checkpoint), checkpoint.config.get("final_logit_softcapping")
    rows = torch.from_numpy(checkpoint.read_rows(name, token_rows(checkpoint.family, chat))).to(device)
    coefficients = _coefficients(checkpoint, device)
    if len(rows) == 1:
        return heads.labels(heads.logit(rows, softcap), coefficients)
    return heads.label_odds(rows, read_vocabulary(checkpoint, device), softcap, coefficients)


def read_vocabulary(checkpoint: Checkpoint, device: torch.device) -> torch.Tensor:
    """The language-model head (V, H) in the checkpoint's own dtype."""
    name = _lm_head(checkpoint)
    with safe_open(checkpoint.tensors[name].file, "pt") as file:
        vocabulary: torch.Tensor = file.get_tensor(name)
    return vocabulary.to(device)


def _lm_head(checkpoint: Checkpoint) -> str:
    """The name of the language-model head, or of the embeddings if these are shared."""
    return LM_HEAD if LM_HEAD in checkpoint.tensors else EMBEDDINGS


def _judge(checkpoint: Checkpoint, chat: Chat, device: torch.device) -> Compute:
    """A head made of two rows of the language-model head, or of the embeddings if these are shared."""
    verdicts = [chat.encode(verdict) for verdict in _VERDICTS[checkpoint.family.text]]
    if any(len(ids) != 1 for ids in verdicts):
        raise ConfigError(
            f"{checkpoint.path}: {_VERDICTS[checkpoint.family.text]} are not one token each: {verdicts}"
        )
    rows = torch.from_numpy(checkpoint.read_rows(_lm_head(checkpoint), [ids[0] for ids in verdicts])).to(
        device
    )
    softcap = checkpoint.config.get("final_logit_softcapping")
    return (heads.step_odds if checkpoint.family.by_step else heads.odds)(rows, softcap)
