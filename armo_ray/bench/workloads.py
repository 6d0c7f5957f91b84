"""What is scored: seeded prompt groups of token ids, or the conversations of real shards.

Lengths are lognormal with the medians and spreads below, each cut at 4,096 tokens: a conversation of the
default mixes has 665 tokens on average. Groups and candidates arrive in the order in which they were drawn.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from armo_ray.engine.packing import Ids, fold
from armo_ray.errors import ConfigError

Group = tuple[Ids, list[Ids]]
LONGEST = 4096
ARRIVAL_BATCH = 8


class Mix(NamedTuple):
    """How many candidates a prompt has; median and sigma of the lognormal lengths in tokens."""

    candidates: int
    prompt_median: float = 180
    prompt_sigma: float = 0.9
    answer_median: float = 330
    answer_sigma: float = 0.6


MIXES = {
    "pairs": Mix(2),
    "rollouts-4": Mix(4),
    "rollouts-8": Mix(8),
    "rollouts-16": Mix(16),
    "long-prompts": Mix(8, prompt_median=1500, answer_median=300),
}


class Vocabulary(NamedTuple):
    """The token ids that a text can have, and those of the template that frame it."""

    text: Ids
    bos: int | None
    pattern: tuple[int, ...]  # from the end of the last user turn to the answer


def synthetic(
    name: str, vocabulary: Vocabulary, candidates: int, seed: int = 0, length_scale: float = 1.0
) -> list[Group]:
    """The workload of this name: `candidates` of them, rounded up to whole groups."""
    mix = MIXES[name]
    rng = np.random.default_rng([seed, list(MIXES).index(name)])
    opening = [] if vocabulary.bos is None else [vocabulary.bos]
    end = list(vocabulary.pattern)

    def draw(median: float, sigma: float, frame: list[int], tail: list[int]) -> Ids:
        length = min(rng.lognormal(np.log(median), sigma), LONGEST) * length_scale
        own = rng.choice(vocabulary.text, max(1, round(length) - len(frame) - len(tail)))
        return np.concatenate((frame, own, tail)).astype(np.int32)

    groups = []
    for _ in range(-(-candidates // mix.candidates)):
        prompt = draw(mix.prompt_median, mix.prompt_sigma, opening, end)
        answers = [draw(mix.answer_median, mix.answer_sigma, [], end[:1]) for _ in range(mix.candidates)]
        groups.append((prompt, answers))
    return groups


def from_shards(inputs: Sequence[str], model: Path, candidates: int, max_length: int) -> list[Group]:
    """The first conversations of real shards, tokenized as the model reads them; too long ones are left out."""
    from armo_ray.model.chat import Chat
    from armo_ray.storage.readers import sample
    from armo_ray.storage.shard_rows import read_shard
    from armo_ray.storage.shards import find_shards
    from armo_ray.text.conversations import candidates_of
    from armo_ray.text.input_columns import of_rows, of_schema
    from armo_ray.text.layouts import detect
    from armo_ray.text.tokenization import Encoder

    encoder = Encoder(Chat.load(model), max_length)
    groups: list[Group] = []
    for shard in find_shards(inputs):
        _, schema, rows = sample(shard, candidates)
        layout = detect(of_rows(rows) if schema is None else of_schema(schema))
        for batch in read_shard(shard, layout.sources, layout.candidate_columns, batch_rows=candidates):
            rows = [row for _, row in batch if isinstance(row, dict)]
            done = encoder.encode([found for row in rows for found in candidates_of(row, layout)])
            answers: list[list[Ids]] = [[] for _ in done.prompts]
            for at, response in zip(done.group, done.responses, strict=True):
                answers[at].append(response)
            for group in zip(done.prompts, answers, strict=True):
                groups.append(group)
                if sum(len(answers) for _, answers in groups) >= candidates:
                    return groups
    if not groups:
        raise ConfigError(f"input {' '.join(inputs)}: no conversation there can be scored")
    return groups


def sequences_of(groups: Sequence[Group]) -> list[Ids]:
    """Whole conversations, in the order of arrival."""
    return [np.concatenate((prompt, answer)) for prompt, answers in groups for answer in answers]


def describe(groups: Sequence[Group]) -> dict[str, Any]:
    """Counts of a workload, its deduplication ratio, and the padding of arrival batches of 8."""
    sequences = sequences_of(groups)
    lengths = np.array([len(ids) for ids in sequences])
    shared = sum(root.total for root in fold(sequences))
    batches = np.split(lengths, range(ARRIVAL_BATCH, len(lengths), ARRIVAL_BATCH))
    padded = sum(int(batch.max()) * len(batch) for batch in batches)
    return {
        "prompts": len(groups),
        "candidates": len(sequences),
        "tokens": int(lengths.sum()),
        "longest": int(lengths.max()),
        "tokens_after_sharing": shared,
        "dedup_ratio": int(lengths.sum()) / shared,
        "padding_of_8": padded / int(lengths.sum()),
    }
