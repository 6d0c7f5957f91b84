"""The families of reward models: which text each reads, at which tokens, and which numbers it returns.

Plain data. `model/recognize.py` identifies a family by its tensors, `text/` renders its input, and `engine/heads.py`
computes rewards from its hidden states.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Family:
    """One kind of head.

    text: "response" is the conversation with its response; "outcome" puts the response into the user's turn and asks
        for a verdict, + or -; "steps" does so for each step of the response; "pairs" asks which of two responses is
        better.
    reads: which tokens the head reads. "last": the last token; "gate": the end of the last user turn and the last
        token; "headers": the end of every assistant header; "before_zero": the token before the first with id 0, or
        the last token if there is none.
    gated: whether the head returns a weight for each reward.
    bos: whether a conversation begins with the BOS token, if the tokenizer has one.
    step_end: text that ends a step of a response; for "outcome", text that marks a step and is removed.
    max_length: maximum number of tokens in a conversation, if the authors' code states one.
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
