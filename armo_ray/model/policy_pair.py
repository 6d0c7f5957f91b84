"""A policy and its reference model as checkpoints, which must have the same tokens. Needs no torch.

Only the policy's tokenizer and template are used, so every token id must mean the same text in both models.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from armo_ray.errors import ConfigError
from armo_ray.model.checkpoint import Checkpoint, inspect
from armo_ray.model.reference import Reference

# Parts of tokenizer.json that determine the ids of a text.
_ENCODING = ("added_tokens", "normalizer", "pre_tokenizer", "model")


def inspect_reference(policy: Checkpoint, model: str, revision: str | None = None) -> Checkpoint:
    """Read and check the files of a policy's reference model, a directory or hub id.

    Raises ConfigError if it is no complete language model, or if its tokens are not those of the policy.
    """
    try:
        reference = inspect(model, revision, policy.family)
    except ConfigError as error:
        raise ConfigError(f"reference-model: {error}") from error
    sizes = [checkpoint.config["vocab_size"] for checkpoint in (policy, reference)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"reference-model: {reference.path} has a vocabulary of {sizes[1]} tokens, but the policy {policy.path} "
            f"one of {sizes[0]}: give the model that its training started from"
        )
    if _tokenizer_fingerprint(policy.path) != _tokenizer_fingerprint(reference.path):
        raise ConfigError(
            f"reference-model: {reference.path} has another tokenizer than the policy {policy.path}: give the model "
            f"that its training started from"
        )
    return reference


def identity_of_pair(policy: Checkpoint, reference: Checkpoint, how: Reference) -> dict[str, Any]:
    """What the rewards depend on, as in a run's identity: two fingerprints, how they are compared, and one of all."""
    parts = {
        "policy_fingerprint": policy.fingerprint,
        "reference_fingerprint": reference.fingerprint,
        "beta": how.factor(policy.family),
        "length_normalized": how.length_normalized,
    }
    text = json.dumps(parts, sort_keys=True)
    return parts | {"model_fingerprint": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}


def _tokenizer_fingerprint(path: Path) -> str:
    """A hash of what determines the ids of a text, whatever version of tokenizers wrote the file."""
    file = path / "tokenizer.json"
    try:
        parts = json.loads(Tokenizer.from_file(str(file)).to_str())
    except Exception as error:  # tokenizers raises plain Exception
        raise ConfigError(f"{file}: not a tokenizer: {error!s:.300}") from error
    text = json.dumps([parts[name] for name in _ENCODING], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
