"""The workloads: prompt groups with random token ids from a seed, or the conversations of real shards.

Lengths are lognormal with the medians and spreads below, cut at 4,096 tokens; with the default mixes, a conversation
has 665 tokens on average. Groups and candidates arrive in the order in which they are drawn.
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
    """The number of candidates per prompt, and median and sigma of the lognormal lengths in tokens."""

    candidates: int
    prompt_median: float = 180
    prompt_sigma: float = 0.9
    response_median: float = 330
    response_sigma: float = 0.6


MIXES = {
    "pairs": Mix(2),
    "rollouts-4": Mix(4),
    "rollouts-8": Mix(8),
    "rollouts-16": Mix(16),
    "long-prompts": Mix(8, prompt_median=1500, response_median=300),
}


class Vocabulary(NamedTuple):
    """The token ids of ordinary text, and those of the chat template around it."""

    text: Ids
    bos: int | None
    pattern: tuple[int, ...]  # from the end of the last user turn to the response


def synthetic(
    name: str, vocabulary: Vocabulary, candidates: int, seed: int = 0, length_scale: float = 1.0
) -> list[Group]:
    """The workload of this name, with the number of candidates rounded up to whole groups."""
    mix = MIXES[name]
    rng = np.random.default_rng([seed, list(MIXES).index(name)])
    opening = [] if vocabulary.bos is None else [vocabulary.bos]
    end = list(vocabulary.pattern)

    def draw(median: float, sigma: float, head: list[int], tail: list[int]) -> Ids:
        length = min(rng.lognormal(np.log(median), sigma), LONGEST) * length_scale
        text = rng.choice(vocabulary.text, max(1, round(length) - len(head) - len(tail)))
        return np.concatenate((head, text, tail)).astype(np.int32)

    groups = []
    for _ in range(-(-candidates // mix.candidates)):
        prompt = draw(mix.prompt_median, mix.prompt_sigma, opening, end)
        responses = [
            draw(mix.response_median, mix.response_sigma, [], end[:1]) for _ in range(mix.candidates)
        ]
        groups.append((prompt, responses))
    return groups


def from_shards(inputs: Sequence[str], model: Path, candidates: int, max_length: int) -> list[Group]:
    """The first conversations of real shards, tokenized for the model, without those that are too long.

    Raises ConfigError if no conversation can be scored.
    """
    from armo_ray.model.chat import Chat
    from armo_ray.storage.readers import sample
    from armo_ray.storage.shard_rows import read_shard
    from armo_ray.storage.shards import find_shards
    from armo_ray.text.conversations import candidates_of
    from armo_ray.text.detect import detect
    from armo_ray.text.input_columns import of_rows, of_schema
    from armo_ray.text.tokenization import Encoder

    encoder = Encoder(Chat.load(model), max_length)
    groups: list[Group] = []
    for shard in find_shards(inputs):
        _, schema, rows = sample(shard, candidates)
        layout = detect(of_rows(rows) if schema is None else of_schema(schema))
        for batch in read_shard(shard, layout.sources, layout.candidate_columns, batch_rows=candidates):
            rows = [row for _, row in batch if isinstance(row, dict)]
            encoded = encoder.encode([c for row in rows for c in candidates_of(row, layout)])
            responses: list[list[Ids]] = [[] for _ in encoded.prompts]
            for at, response in zip(encoded.group, encoded.responses, strict=True):
                responses[at].append(response)
            for group in zip(encoded.prompts, responses, strict=True):
                groups.append(group)
                if sum(len(responses) for _, responses in groups) >= candidates:
                    return groups
    if not groups:
        raise ConfigError(f"input {' '.join(inputs)}: none of its conversations can be scored")
    return groups


def sequences_of(groups: Sequence[Group]) -> list[Ids]:
    """Token ids of whole conversations, in the order of arrival."""
    return [np.concatenate((prompt, response)) for prompt, responses in groups for response in responses]


def describe(groups: Sequence[Group]) -> dict[str, Any]:
    """Counts of a workload, its deduplication ratio, and the padding in batches of 8 in the order of arrival."""
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
