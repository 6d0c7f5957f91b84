"""Small tokenizers with the special tokens and chat templates of the backbones that reward models use."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from armo_ray.model.families import PAIR_MARKS
from armo_ray.tiny.armorm import (
    CORPUS,
    LLAMA3_SPLIT,
    LLAMA3_TEMPLATE,
    SPECIAL_TOKENS,
    tiny_tokenizer,
    write_json,
)

_TURNS = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>"
_CHATML = (
    _TURNS + "\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_HELPFUL = "You are a helpful assistant."
_SYSTEM = f"<|im_start|>system\n{_HELPFUL}<|im_end|>\n"
_REASON = "Please reason step by step, and put your final answer within {{ '\\\\boxed{}' }}."
# Moves the thought in a response to its start; a response without a thought gets an empty one.
_QWEN3 = (
    "{% for message in messages %}{% set content = message['content'] %}{% set thought = '' %}"
    "{% if message['role'] == 'assistant' and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' + content.lstrip('\n') }}{% else %}{{ content }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_QWEN_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


class Kind(NamedTuple):
    """The chat template and the tokens of a kind of tokenizer."""

    template: str
    named: dict[str, str]  # special tokens by the names that templates use (bos_token, ...)
    special: tuple[str, ...] = ()  # all special tokens in the order of their ids
    plain: tuple[str, ...] = ()  # added tokens that are ordinary text
    split: str = LLAMA3_SPLIT  # pattern of the pre-tokenizer
    adds_bos: bool = False  # whether the tokenizer adds BOS by itself


_LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|end_of_text|>"}
_QWEN = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATES = {
    "llama3": Kind(LLAMA3_TEMPLATE, _LLAMA3, SPECIAL_TOKENS[:-1]),
    # As in Skywork's models, the template leaves BOS to the tokenizer.
    "llama3-no-bos": Kind(
        LLAMA3_TEMPLATE.replace("bos_token + content", "content"), _LLAMA3, SPECIAL_TOKENS[:-1], adds_bos=True
    ),
    "llama3-header": Kind(
        LLAMA3_TEMPLATE.replace("{% if add_generation_prompt %}", "{% if true %}"),
        _LLAMA3,
        SPECIAL_TOKENS[:-1],
    ),
    "qwen2": Kind(
        "{% if messages[0]['role'] != 'system' %}" + _SYSTEM + "{% endif %}" + _CHATML,
        _QWEN,
        _QWEN_SPECIAL,
        split=_QWEN_SPLIT,
    ),
    "qwen3": Kind(_QWEN3, _QWEN, _QWEN_SPECIAL, ("<think>", "</think>"), _QWEN_SPLIT),
    "gemma2": Kind(
        _GEMMA,
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        adds_bos=True,
    ),
    # The last turn of a conversation does not end in a newline.
    "yi": Kind(
        _TURNS + "' + ('' if loop.last and not add_generation_prompt else '\n') }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        {
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<unk>",
            "unk_token": "<unk>",
        },
        ("<unk>", "<|startoftext|>", *_QWEN_SPECIAL),
    ),
}

_QWEN2 = TEMPLATES["qwen2"]
_MARKED = _QWEN2._replace(special=(*_QWEN_SPECIAL, "<extra_0>"))
# Those of process models that read a token after each step.
_STEPS = {
    "qwen2-marks": _MARKED,
    # As in Qwen2.5-Math, the template's own system prompt asks for steps.
    "qwen2-steps": _MARKED._replace(template=_QWEN2.template.replace(_HELPFUL, _REASON)),
    "qwen2-bos": _QWEN2._replace(template=_CHATML, named=_QWEN | {"bos_token": "<|endoftext|>"}),
    # As Mistral's first tokenizer: no pre-tokenizer, spaces are letters, other characters are bytes.
    "sentencepiece": Kind(
        "", {"bos_token": "<s>", "eos_token": "</s>"}, ("<unk>", "<s>", "</s>"), adds_bos=True
    ),
}
_DEBERTA = {
    "bos_token": "[CLS]",
    "cls_token": "[CLS]",
    "eos_token": "[SEP]",
    "mask_token": "[MASK]",
    "pad_token": "[PAD]",
    "sep_token": "[SEP]",
    "tokenizer_class": "DebertaV2Tokenizer",
    "unk_token": "[UNK]",
}


def sentence_tokenizer(special: tuple[str, ...]) -> Tokenizer:
    """BPE as SentencePiece does it, with the word "ки" and the signs "+" and "-" as tokens."""
    signs, letters = ["ки", "+", "-"] * 2, [chr(i) for i in range(33, 127)]
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False, initial_alphabet=letters)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.train_from_iterator([*CORPUS.split(), *signs], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    names = [*special, *(f"<0x{i:02X}>" for i in range(256)), *model["vocab"]]
    tokenizer.model = models.BPE(
        {name: i for i, name in enumerate(names)},
        [tuple(pair) for pair in model["merges"]],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    return tokenizer


def pair_tokenizer() -> Tokenizer:
    """DeBERTa's kind of tokenizer, which joins two texts as [CLS] first [SEP] second [SEP]."""
    learned = sorted(sentence_tokenizer(()).get_vocab().items(), key=lambda entry: entry[1])
    special = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
    pieces = [piece for piece, _ in learned if not piece.startswith("<0x")]
    scores = [(piece, -1 - i / len(pieces)) for i, piece in enumerate(pieces)]
    tokenizer = Tokenizer(
        models.Unigram([*((text, 0.0) for text in special), *scores], special.index("[UNK]"))
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "),
            normalizers.NFC(),
            normalizers.Strip(left=False),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in (*special, "[MASK]")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))],
    )
    return tokenizer


def write_tokenizer(path: Path, name: str, max_length: int) -> Tokenizer:
    """Write tokenizer.json and tokenizer_config.json of a kind; returns the tokenizer."""
    if name.startswith("deberta"):
        tokenizer = pair_tokenizer()
        if name == "deberta-pairs":
            tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in PAIR_MARKS])
        write_json(path / "tokenizer_config.json", _DEBERTA | {"model_max_length": max_length})
        tokenizer.save(str(path / "tokenizer.json"))
        return tokenizer
    kind = (TEMPLATES | _STEPS)[name]
    sentences = name == "sentencepiece"
    tokenizer = sentence_tokenizer(kind.special) if sentences else tiny_tokenizer(kind.special, kind.split)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in kind.plain])
    if kind.adds_bos:
        bos = kind.named["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    options: dict[str, Any] = kind.named | {
        "chat_template": kind.template,
        "model_max_length": max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(path / "tokenizer_config.json", options)
    tokenizer.save(str(path / "tokenizer.json"))
    return tokenizer
