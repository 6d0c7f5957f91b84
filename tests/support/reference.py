"""A plain reference implementation of ArmoRM-Llama3-8B-v0.1: the oracle that the tests compare against.

It is meant to be obviously right, not fast: float32, eager attention, one unpadded conversation at a time.
It shares no code with the package under test.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch.nn.functional import linear, relu, softmax
from transformers import AutoModel, AutoTokenizer

Message = dict[str, str]
Scored = tuple[float, npt.NDArray[np.float32], npt.NDArray[np.float32]]
GATE_PATTERN = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


def load_head(model_dir: Path) -> dict[str, torch.Tensor]:
    """Every tensor that does not belong to the backbone, by name, in float32."""
    index = model_dir / "model.safetensors.index.json"
    files = {path.name for path in model_dir.glob("*.safetensors")}
    if index.exists():
        files = set(json.loads(index.read_text())["weight_map"].values())
    head: dict[str, torch.Tensor] = {}
    for name in sorted(files):
        with safe_open(model_dir / name, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (safe_open is not iterable)
                if not key.startswith("model."):
                    head[key] = tensors.get_tensor(key).float()
    return head


class Reference:
    """Scores conversations with the checkpoint in `model_dir`."""

    def __init__(self, model_dir: Path) -> None:
        config = json.loads((model_dir / "config.json").read_text())
        self.temperature = float(config["gating_temperature"])
        self.n_hidden = int(config["gating_n_hidden"])
        self.pad_id: int | None = config.get("pad_token_id")
        self.head = load_head(model_dir)

        auto_model: Any = AutoModel
        auto_tokenizer: Any = AutoTokenizer
        self.backbone, report = auto_model.from_pretrained(
            model_dir, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        if report["missing_keys"]:
            raise ValueError(f"Backbone weights missing from {model_dir}: {sorted(report['missing_keys'])}")
        self.backbone.eval()
        self.tokenizer = auto_tokenizer.from_pretrained(model_dir)
        self.pattern: list[int] = self.tokenizer.encode(GATE_PATTERN, add_special_tokens=False)

    def gate_position(self, ids: list[int]) -> int:
        """Start of the last assistant header: the `<|eot_id|>` that closes the turn before the answer."""
        n = len(self.pattern)
        for start in range(len(ids) - n, -1, -1):
            if ids[start : start + n] == self.pattern:
                return start
        raise ValueError("Token pattern not found in the list.")

    def last_position(self, ids: list[int]) -> int:
        """The token before the first padding token, or the last one if there is none, as in the original."""
        first_pad = ids.index(self.pad_id) if self.pad_id is not None and self.pad_id in ids else 0
        return (first_pad - 1) % len(ids)

    @torch.inference_mode()
    def score_ids(self, ids: list[int]) -> Scored:
        """(score, rewards before the transform, gating) of one tokenized conversation."""
        gate, last = self.gate_position(ids), self.last_position(ids)
        hidden = self.backbone(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
        rewards = linear(hidden[last], self.head["regression_layer.weight"])
        x = hidden[gate]
        for i in range(self.n_hidden + 1):
            x = relu(x) if i > 0 else x
            x = linear(x, self.head[f"gating.layers.{i}.weight"], self.head[f"gating.layers.{i}.bias"])
        gating = softmax(x / self.temperature, dim=0) * self.head["gating.logit_scale"][0]

        score = ((rewards @ self.head["reward_transform_matrix"]) * gating).sum()
        return float(score), rewards.numpy(), gating.numpy()

    def encode(self, messages: list[Message], plain_special_tokens: bool = True) -> list[int]:
        """Token ids of a conversation, with one BOS and no generation prompt.

        A string such as "<|eot_id|>" inside a message is ordinary text with `plain_special_tokens`,
        and without it the control token of that name, as with the original model.
        """
        if not plain_special_tokens:
            return list(self.tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"])

        def plain(text: str) -> list[int]:
            return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

        bos, start, end, eot = self.tokenizer.convert_tokens_to_ids(
            ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        )
        ids = [bos]
        for message in messages:
            ids += [start, *plain(message["role"]), end, *plain("\n\n" + message["content"].strip()), eot]
        return ids

    def score(self, messages: list[Message], plain_special_tokens: bool = True) -> Scored:
        """(score, rewards, gating) of one conversation, whose last message is the answer to judge."""
        return self.score_ids(self.encode(messages, plain_special_tokens))
