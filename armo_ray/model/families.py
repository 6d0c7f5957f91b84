"""The families of reward models: what text each reads, at which tokens, and which numbers it returns.

Plain data. How a family's tensors are told from others is in `engine/recognize.py`, how its text is written in
`text/`, what is computed from the hidden states in `engine/heads.py`.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Family:
    """One kind of head.

    text: "response" is the conversation with its response; "outcome" puts the response into the user's turn and asks
        for a sign; "steps" does so for each step of it; "pairs" asks which of two answers is better.
    reads: "last" token; "gate" is the end of the last user turn, and the last token; "headers" is the end of
        every assistant header; "before_zero" is the token before the first of id 0, or the last.
    gated: whether it returns a weight for each reward.
    bos: whether a conversation begins with the BOS token, where the tokenizer has one.
    step_end: what ends a step of an answer; of an outcome, what marks one and is left out.
    max_length: most tokens of a conversation, where the authors' code states it.
    """

    name: str
    text: Literal["response", "outcome", "steps", "pairs"] = "response"
    reads: Literal["last", "gate", "headers", "before_zero"] = "last"
    gated: bool = False
    bos: bool = True
    step_end: str = ""
    max_length: int | None = None


FAMILIES = {
    family.name: family
    for family in (
        Family("armorm", reads="gate", gated=True),
        Family("qrm", reads="gate", gated=True),
        Family("classifier"),
        Family("mlp-classifier"),
        Family("urm", gated=True),
        Family("value-head"),
        Family("starling", reads="before_zero", bos=False, max_length=2048),
        Family("orm-mistral", text="outcome", step_end=" ки", max_length=8192),
        Family("orm-deepseek", text="outcome", max_length=8192),
        Family("prm-mistral", text="steps", reads="headers", step_end="ки\n", max_length=8192),
        Family("prm-deepseek", text="steps", reads="headers", step_end="\n\n", max_length=8192),
        Family("pairwise", text="pairs", bos=False, max_length=8192),
    )
}
