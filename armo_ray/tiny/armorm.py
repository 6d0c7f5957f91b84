"""A tiny ArmoRM with random weights: tensor names, dtypes, config and template of the released model in 1 MB."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

# Llama-3's special tokens in the order of their ids; ArmoRM appends [PAD].
SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(4)),
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|reserved_special_token_4|>",
    "<|eot_id|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(5, 251)),
    "[PAD]",
)
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_TEMPLATE = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
NAMED_TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "[PAD]"}
TOKENIZER_CONFIG = NAMED_TOKENS | {
    "chat_template": LLAMA3_TEMPLATE,
    "clean_up_tokenization_spaces": True,
    "model_input_names": ["input_ids", "attention_mask"],
    "tokenizer_class": "PreTrainedTokenizerFast",
}
# The fields of the released config.json that do not depend on the size of the model.
CONFIG = {
    "architectures": ["LlamaForRewardModelWithGating"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"},
    "gating_temperature": 10,
    "hidden_act": "silu",
    "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": False,
}
# Training text for the small vocabulary: enough English for about three characters per token.
CORPUS = """
system user assistant the of and to in is you that it for on with as this are be or can not have from your
will what which when how there their they them these would should could about more other some into than then
help please question answer because people time first second also here just like make want need know think
write explain describe example following because before after different between important information
however therefore although including such through where while most many much each every only same another
"""


def write_tiny_model(
    path: Path,
    seed: int = 0,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    num_objectives: int = 19,
    gating_hidden_dim: int = 32,
    gating_n_hidden: int = 3,
    max_length: int = 8192,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a checkpoint directory: two safetensors files with an index, config, tokenizer and template.

    Backbone tensors are bfloat16 and head tensors float32, as in the released model. The same seed gives the same
    bytes.
    """
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or tiny_tokenizer()
    ids = {name: tokenizer.token_to_id(token) for name, token in NAMED_TOKENS.items()}
    config = CONFIG | {
        "bos_token_id": ids["bos_token"],
        "eos_token_id": ids["eos_token"],
        "gating_hidden_dim": gating_hidden_dim,
        "gating_n_hidden": gating_n_hidden,
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size * 2,
        "max_position_embeddings": max_length,
        "num_attention_heads": num_heads,
        "num_hidden_layers": num_layers,
        "num_key_value_heads": num_kv_heads,
        "num_objectives": num_objectives,
        "pad_token_id": ids["pad_token"],
        "vocab_size": tokenizer.get_vocab_size(),
    }
    write_json(path / "config.json", config)
    write_json(path / "tokenizer_config.json", TOKENIZER_CONFIG | {"model_max_length": max_length})
    tokenizer.save(str(path / "tokenizer.json"))
    generator = torch.Generator().manual_seed(seed)
    backbone, head = _backbone(config, generator), random_head(config, generator)
    files = {"model-00001-of-00002.safetensors": backbone, "model-00002-of-00002.safetensors": head}
    for name, tensors in files.items():
        save_file(tensors, path / name, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(t.nbytes for tensors in files.values() for t in tensors.values())},
        "weight_map": {tensor: name for name, tensors in files.items() for tensor in tensors},
    }
    write_json(path / "model.safetensors.index.json", index)


def tiny_tokenizer(special_tokens: Sequence[str] = SPECIAL_TOKENS, split: str = LLAMA3_SPLIT) -> Tokenizer:
    """Byte-level BPE with about 600 tokens plus special tokens.

    By default the special tokens and the pre-tokenizer's pattern are Llama-3's. An `<unk>` token has id 0, as in the
    vocabularies that have one.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[token for token in special_tokens if token == "<unk>"],
        show_progress=False,
    )
    words = CORPUS.split()
    tokenizer.train_from_iterator([*words, *(" " + word for word in words), "a\n\na"], trainer)
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in special_tokens]
    )
    return tokenizer


def _backbone(config: dict[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).mul_(shape[-1] ** -0.5).bfloat16()

    tensors = {"model.embed_tokens.weight": normal(config["vocab_size"], hidden) * hidden**0.5}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        tensors |= {f"{prefix}.{name}.weight": normal(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    tensors["model.norm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    return tensors


def random_head(config: dict[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The tensors of an ArmoRM head with random weights, named as in a checkpoint."""
    hidden, count, width = config["hidden_size"], config["num_objectives"], config["gating_hidden_dim"]
    transform = torch.eye(count)
    verbosity = min(4, count - 1)
    penalty = torch.rand(count, generator=generator) * 0.3
    penalty[verbosity] = 1.0  # as in the released model: verbosity only lowers the other rewards
    transform[verbosity] -= penalty
    tensors = {
        "regression_layer.weight": torch.randn(count, hidden, generator=generator) * 0.3 * hidden**-0.5,
        "reward_transform_matrix": transform,
        "gating.logit_scale": torch.ones(1),
    }
    widths = [hidden, *[width] * config["gating_n_hidden"], count]
    for i, (wide_in, wide_out) in enumerate(pairwise(widths)):
        tensors[f"gating.layers.{i}.weight"] = (
            torch.randn(wide_out, wide_in, generator=generator) * (2 / wide_in) ** 0.5 * 2
        )
        tensors[f"gating.layers.{i}.bias"] = torch.randn(wide_out, generator=generator) * 0.1
    return tensors


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
