"""Options of the engine. None of them changes a score beyond rounding."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Optimizations can be turned off to measure what they gain."""

    token_budget: int  # maximum number of tokens in a forward pass
    share_prompts: bool = True  # compute common prefixes and equal conversations once
    fixed_packs: bool = False  # pad every pass to token_budget, so that matrix products have a fixed shape
    needed_rows: bool = True  # compute the last layer only for the rows that the head reads
    compile: bool = False  # torch.compile the functions around attention
    kernel: bool = True  # use torch's attention kernel where it takes the model
    keep_hidden: bool = False  # return the hidden states that the head reads, too
