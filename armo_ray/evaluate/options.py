"""The options of `armo-ray evaluate`."""

from typing import Literal

from pydantic import Field

from armo_ray.options import Name, Names, NewPlace
from armo_ray.outputs.options import ScoresOptions


class EvaluateOptions(ScoresOptions):
    """How often scores are right where the right answer is known."""

    benchmark: Literal[
        "labelled", "rewardbench", "rewardbench-2", "rm-bench", "m-rewardbench", "rag-rewardbench", "llmbar"
    ] = "labelled"
    """Whose rules make the table; labelled is any set with chosen and rejected answers."""
    by: Names = ()
    """With labelled: columns of the scores whose values are the subsets."""
    output: NewPlace | None = None
    """Directory or URI for evaluation.json and the figures; nothing may be there yet."""
    bootstrap: int = Field(1000, ge=100)
    """Samples that the intervals are made of; they hold 95 % of them."""
    seed: int = 0
    """Of those samples."""
    published: Name | None = None
    """Model whose published results are put beside; default: the one that the scores are of."""
