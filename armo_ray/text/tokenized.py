"""Data types: candidates as token ids, and the prompts that they continue."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from armo_ray.model.messages import Messages

Ids = npt.NDArray[np.int32]


@dataclass
class Tokenized:
    """The candidates that can be scored, as columns, and the rejects.

    `prompts` holds distinct beginnings; sequence j, which the model reads, is prompts[group[j]] ++ responses[j].
    Each scored candidate has one sequence, in the same order, unless responses are compared in pairs. Then
    contests[j] is the pair of candidates in sequence j, first one first, as indices into `source`.
    """

    prompts: list[Ids] = field(default_factory=list)
    group: list[int] = field(default_factory=list)
    responses: list[Ids] = field(default_factory=list)
    contests: list[tuple[int, int]] = field(default_factory=list)
    source: list[int] = field(default_factory=list)  # index into the list of candidates
    prompt_id: list[str] = field(default_factory=list)
    num_prompt_tokens: list[Any] = field(
        default_factory=list
    )  # int; None if it is not tokenized, for a judge
    num_response_tokens: list[Any] = field(default_factory=list)
    flags: list[list[str]] = field(default_factory=list)
    rejects: list[tuple[int, str, str]] = field(default_factory=list)  # index, reason, detail

    def add(self, source: int, prompt: "Prompt", num_tokens: tuple[Any, Any], flags: list[str]) -> None:
        """Add a scored candidate to the columns; `num_tokens` counts its prompt and its response."""
        self.source.append(source)
        self.prompt_id.append(prompt.id)
        self.num_prompt_tokens.append(num_tokens[0])
        self.num_response_tokens.append(num_tokens[1])
        self.flags.append(flags)

    def sequences(self) -> list[tuple[Ids, list[Ids]]]:
        """The sequences as groups for RewardModel.score."""
        return [(self.prompts[g], [ids]) for g, ids in zip(self.group, self.responses, strict=True)]


@dataclass
class Prompt:
    """A distinct prompt: its text, whether user text in it looks like special tokens, and its ids."""

    messages: Messages
    tools: list[Any] | None = None
    text: str = ""
    id: str = ""
    flagged: bool = False
    whole: bool = False  # responses to it are cut out of the rendered conversation
    error: tuple[str, str] | None = None  # reason and detail if it cannot be scored
    ids: Ids | None = None
    place: int | None = None  # index in Tokenized.prompts
