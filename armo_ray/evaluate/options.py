"""The options of `armo-ray evaluate`, besides those of `armo-ray score`."""

from typing import Annotated, Literal

from pydantic import Field

from armo_ray.options import Help, Name, Names, NewPlace
from armo_ray.outputs.options import ScoresOptions


class EvaluateOptions(ScoresOptions):
    """Measure how often scores are right where the right answer is known."""

    benchmark: Annotated[
        Literal[
            "labelled",
            "rewardbench",
            "rewardbench-2",
            "rm-bench",
            "m-rewardbench",
            "rag-rewardbench",
            "llmbar",
            "processbench",
        ],
        Help("what is measured", "NAME"),
    ] = "labelled"
    """Rules: labelled, rewardbench, rewardbench-2, rm-bench, m-rewardbench, rag-rewardbench, llmbar, processbench."""
    by: Annotated[Names, Help("what is measured", "COLUMN")] = ()
    """With labelled: columns of the scores whose values are the subsets."""
    bootstrap: Annotated[int, Help("what is measured", "N")] = Field(1000, ge=100)
    """Bootstrap samples for the 95 % intervals."""
    seed: Annotated[int, Help("what is measured", "N")] = 0
    """Seed of the bootstrap samples."""
    threshold: Annotated[float | None, Help("what is measured", "X")] = None
    """With processbench: steps below it are wrong; default: 0.5, or 0."""
    published: Annotated[Name | None, Help("what is measured", "NAME")] = None
    """Model whose published results to show too; default: this model."""
    output: Annotated[NewPlace | None, Help("what is written", "DIR")] = None
    """Directory or URI for evaluation.json and figures, or scores and tables."""
