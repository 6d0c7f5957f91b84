"""What the dataset card says of the model of a run."""

from collections.abc import Mapping
from typing import Any

from armo_ray.model.reference import Reference
from armo_ray.score.config import ModelOptions

_LONGER = {
    "none": "rejected as `too_long`",
    "left": "cut at the beginning of their prompt and flagged `truncated`",
    "middle": "cut in the middle of their prompt and flagged `truncated`",
}


def about_model(
    config: ModelOptions, max_length: int, metadata: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    """Names and texts about the model of a run, whose footers hold `metadata`."""
    special = (
        "read as plain text and flagged" if config.special_tokens == "plain" else "read as special tokens"
    )
    longer = f"{max_length} tokens; longer conversations are {_LONGER[config.use.truncate]}"
    revision = metadata["model_revision"]
    return (
        ("model", f"`{metadata['model']}`"),
        ("revision", f"`{revision}`" if revision else "none, a directory"),
        *_about_reference(config.use.reference, metadata),
        ("family", metadata["model_family"]),
        ("fingerprint of the weights", f"`{metadata['model_fingerprint']}`"),
        ("dtype of the backbone", config.dtype),
        ("maximum length", longer),
        ("text that spells special tokens", special),
    )


def _about_reference(given: Reference | None, metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    if given is None:
        return []
    divided = ", divided by the number of response tokens" if given.length_normalized else ""
    return [
        ("reference model", f"`{metadata['reference_model']}`"),
        ("fingerprint of its weights", f"`{metadata['reference_fingerprint']}`"),
        ("reward", f"{metadata['beta']:g} times the log ratio{divided}"),
    ]
