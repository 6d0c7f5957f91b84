"""Every family scores as its authors do, however its conversations are packed; what fits none is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from armo_ray.chat import Chat, Messages
from armo_ray.engine import RewardModel
from armo_ray.engine.tiny_families import BACKBONES, write_family
from armo_ray.families import FAMILIES
from armo_ray.text.conversations import Candidate
from armo_ray.text.tokenization import Encoder
from tests.published import PUBLISHED
from tests.test_engine import conversations

CASES = {
    **{name: (name, "llama", {}) for name in PUBLISHED},
    **{f"classifier-{b}": ("classifier", b, {}) for b in BACKBONES if b != "llama"},
    "classifier-three-labels": ("classifier", "llama", {"id2label": {"0": "Is-safe", "1": "a b", "2": "C"}}),
    "mlp-classifier-qwen2": ("mlp-classifier", "qwen2", {}),
    "orm-deepseek-qwen2-tied": ("orm-deepseek", "qwen2", {"tie_word_embeddings": True}),
    "orm-deepseek-gemma2-tied": ("orm-deepseek", "gemma2", {"tie_word_embeddings": True}),
}


def texts(family: str) -> list[tuple[Messages, str]]:
    """Some real conversations, of one turn where steps of an answer are judged."""
    known = conversations()
    found = [entry for start in range(0, len(known), len(known) // 7) for entry in known[start : start + 2]]
    if FAMILIES[family].text == "steps":
        found = [(prompt[-1:], answer) for prompt, answer in found]
    if family.endswith("-mistral"):
        found = [(prompt, answer.replace(". ", ". ки\n") + " ки") for prompt, answer in found]
    if family.startswith("prm-deepseek"):
        found = [(prompt, answer.replace(". ", ".\n\n")) for prompt, answer in found]
    return found


def candidates(said: list[tuple[Messages, str]]) -> list[Candidate]:
    return [Candidate(i, "response", prompt, answer) for i, (prompt, answer) in enumerate(said)]


@pytest.mark.parametrize(("family", "backbone", "fields"), CASES.values(), ids=CASES.keys())
def test_scores_are_those_of_the_published_procedure(
    family: str, backbone: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    write_family(tmp_path, family, backbone, **fields)
    judge = FAMILIES[family].text != "answer"
    model = RewardModel.load(str(tmp_path), None, "float32", "cpu", 900, family=family if judge else None)
    encoder = Encoder(Chat.load(tmp_path, model.head.family), 8192)
    said = texts(family)
    done = encoder.encode(candidates(said))
    assert done.rejects == []
    shared = model.score(done.sequences())
    unshared = model.with_options(share_prompts=False).score(done.sequences())
    assert shared.computed_tokens < unshared.computed_tokens
    with torch.inference_mode():
        published = PUBLISHED[family](tmp_path)
        expected = [published(prompt, answer) for prompt, answer in said]
    for found in (shared, unshared):
        assert np.abs(found.score - [score for score, _ in expected]).max() < 1e-5
        rewards = found.steps if FAMILIES[family].text == "steps" else found.rewards
        for row, (_, numbers) in zip(rewards, expected, strict=True):
            assert np.abs(row - numbers).max() < 1e-5
    assert np.ptp(shared.score) > 1e-3
