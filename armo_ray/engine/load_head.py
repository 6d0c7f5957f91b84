"""Loading of a checkpoint's head onto a device."""

import numpy as np
import torch

from armo_ray.engine import heads
from armo_ray.engine.heads import Compute, Head
from armo_ray.errors import ConfigError
from armo_ray.model.chat import Chat
from armo_ray.model.checkpoint import Checkpoint
from armo_ray.model.recognize import EMBEDDINGS, LM_HEAD, expected_head

# The verdicts of judging models, for each kind of text: the good one, or the first response, comes first.
_VERDICTS = {"outcome": ("+", "-"), "steps": ("+", "-"), "pairs": ("A", "B")}


def read_head(checkpoint: Checkpoint, chat: Chat, device: torch.device) -> Head:
    """The head of a checkpoint that `inspect` checked. Raises ConfigError if a verdict is not a single token."""
    family = checkpoint.family
    compute = (
        _judge(checkpoint, chat, device) if family.text != "response" else _regression(checkpoint, device)
    )
    pattern = np.array(chat.response_pattern, np.int32)
    return Head(checkpoint.reward_names, family, pattern, compute)


def _regression(checkpoint: Checkpoint, device: torch.device) -> Compute:
    """A head that has its own tensors."""
    name, config = checkpoint.family.name, checkpoint.config
    expected, optional = expected_head(checkpoint.family, config, checkpoint.shapes)
    biases = [n for n in optional if n in checkpoint.tensors and n.endswith(".bias")]
    tensors = {n: torch.from_numpy(checkpoint.read(n)).to(device) for n in (*expected, *biases)}
    if name == "armorm":
        return heads.armorm(tensors, float(config["gating_temperature"]))
    if name == "qrm":
        return heads.qrm(tensors, float(config.get("gating_temperature", 10)), int(config["num_quantiles"]))
    if name == "urm":
        return heads.urm(tensors)
    layers = {
        "classifier": ["score"],
        "mlp-classifier": ["score.0", "score.2"],
        "value-head": ["v_head"],
        "starling": ["v_head"],
    }[name]
    coefficients = torch.tensor(checkpoint.coefficients, dtype=torch.float32, device=device)
    return heads.labels(heads.relu_mlp(tensors, layers), coefficients)


def _judge(checkpoint: Checkpoint, chat: Chat, device: torch.device) -> Compute:
    """A head made of two rows of the language-model head, or of the embeddings if these are shared."""
    verdicts = [chat.encode(verdict) for verdict in _VERDICTS[checkpoint.family.text]]
    if any(len(ids) != 1 for ids in verdicts):
        raise ConfigError(
            f"{checkpoint.path}: {_VERDICTS[checkpoint.family.text]} are not one token each: {verdicts}"
        )
    name = LM_HEAD if LM_HEAD in checkpoint.tensors else EMBEDDINGS
    rows = torch.from_numpy(checkpoint.read_rows(name, [ids[0] for ids in verdicts])).to(device)
    softcap = checkpoint.config.get("final_logit_softcapping")
    return (heads.step_odds if checkpoint.family.text == "steps" else heads.odds)(rows, softcap)
