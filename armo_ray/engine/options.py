"""How the engine runs; none of it changes a score beyond rounding."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """What can be chosen, or turned off to see what it is worth."""

    token_budget: int  # most tokens in a forward pass
    share_prompts: bool = True  # common prefixes and equal conversations once
    fixed_packs: bool = False  # every pass padded to token_budget: its matrix products have one shape
    needed_rows: bool = True  # the last layer on the rows that the head reads
    fused_norm: bool = True  # F.rms_norm for transformers' module
    compile: bool = False  # torch.compile of the parts around attention
