"""Candidates as token ids, and the prompts that they continue."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from armo_ray.model.chat import Messages

Ids = npt.NDArray[np.int32]


@dataclass
class Tokenized:
    """What can be scored, column by column, and what cannot.

    `prompts` holds distinct beginnings; sequence j, which the model reads, is prompts[group[j]] ++ responses[j].
    Each scored candidate has one, in the same order, but where answers are compared in pairs: there
    `contests` tells, of each sequence, the candidate that it names first and the other, as places in `source`.
    """

    prompts: list[Ids] = field(default_factory=list)
    group: list[int] = field(default_factory=list)
    responses: list[Ids] = field(default_factory=list)
    contests: list[tuple[int, int]] = field(default_factory=list)
    source: list[int] = field(default_factory=list)  # index into the candidates given
    prompt_id: list[str] = field(default_factory=list)
    num_prompt_tokens: list[int] = field(default_factory=list)
    num_response_tokens: list[int] = field(default_factory=list)
    flags: list[list[str]] = field(default_factory=list)
    rejects: list[tuple[int, str, str]] = field(default_factory=list)  # index, reason, detail

    def add(self, source: int, prompt: "Prompt", num_tokens: tuple[int, int], flags: list[str]) -> None:
        """Add the columns of a scored candidate; `num_tokens` of its prompt and its response."""
        self.source.append(source)
        self.prompt_id.append(prompt.id)
        self.num_prompt_tokens.append(num_tokens[0])
        self.num_response_tokens.append(num_tokens[1])
        self.flags.append(flags)

    def sequences(self) -> list[tuple[Ids, list[Ids]]]:
        """What RewardModel.score takes."""
        return [(self.prompts[g], [ids]) for g, ids in zip(self.group, self.responses, strict=True)]


@dataclass
class Prompt:
    """A distinct prompt: its text, whether user text in it looks like special tokens, and its ids."""

    messages: Messages
    tools: list[Any] | None = None
    text: str = ""
    id: str = ""
    flagged: bool = False
    whole: bool = False  # answers to it are cut from whole conversations
    error: tuple[str, str] | None = None  # reason and detail of why it cannot be scored
    ids: Ids | None = None
    place: int | None = None  # in Tokenized.prompts
