"""Reading of tokenizer.json. Needs no torch."""

import json
import secrets
from pathlib import Path

from tokenizers import Tokenizer, models

from armo_ray.errors import ConfigError

# BPE's word cache holds 10,000 words by default, too few for real text; 65,536 raised 470k tokens/s to 600k.
_CACHED_WORDS = 1 << 16


def load_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of a file, without truncation and padding. Raises ConfigError if the file is damaged."""
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises plain Exception
        raise ConfigError(f"{file}: not a tokenizer: {error!s:.300}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if hasattr(tokenizer.model, "_resize_cache"):
        tokenizer.model._resize_cache(_CACHED_WORDS)
    if isinstance(tokenizer.model, models.Unigram):
        _hide_special(tokenizer)
    return tokenizer


def num_ids(tokenizer: Tokenizer) -> int:
    """The number of rows that embeddings need for this tokenizer: one more than its largest id."""
    return 1 + max(tokenizer.get_vocab().values())


def _hide_special(tokenizer: Tokenizer) -> None:
    """Keep a Unigram model from finding special tokens in text.

    Its vocabulary has them as pieces like any other, and the most likely ones. With a secret after their names, no text
    spells one; a template's are still found, since they are looked for before the model is asked.
    """
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    state, secret = json.loads(tokenizer.to_str())["model"], secrets.token_hex(16)
    vocabulary = [(piece + secret * (piece in special), score) for piece, score in state["vocab"]]
    tokenizer.model = models.Unigram(vocabulary, state["unk_id"], state.get("byte_fallback", False))
