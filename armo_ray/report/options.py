"""The options of `armo-ray report`."""

from typing import Annotated

from pydantic import Field, model_validator

from armo_ray.options import Finite, Help, Name, NewPlace, Places
from armo_ray.outputs.options import ScoresOptions


class ReportOptions(ScoresOptions):
    """Write a page about outputs, complete or not."""

    scores: Annotated[Places, Help("required", "OUT", word=True)] = Field(min_length=1)
    """Outputs of score, complete or not, all from one model."""
    output: Annotated[NewPlace | None, Help("what is written", "PLACE")] = None
    """Directory, URI or .html file to write; default: the output itself."""
    price: Annotated[Finite | None, Help("what is written", "USD")] = Field(None, ge=0)
    """Price per hour of a GPU, or of a replica without one: adds the cost."""
    by: Annotated[Name | None, Help("what is written", "COLUMN")] = None
    """Directory, such as date: draws its values, each against the 7 before."""
    examples: Annotated[int, Help("what is written", "N")] = Field(5, ge=0, le=50)
    """Highest and lowest scores to show, and rejects for each reason."""
    against: Annotated[Places, Help("drift", "OUT")] = ()
    """Older outputs of the same model to compare with, as if they were one."""
    per: Annotated[Name | None, Help("drift", "COLUMN")] = None
    """Kept column or directory: adds the drift of each value."""
    max_psi: Annotated[Finite, Help("drift", "X")] = Field(0.25, gt=0)
    """Population stability index, over the older output's deciles, above which a column has drifted. It must also
    exceed what chance gives once in 1,000 times."""
    max_ks: Annotated[Finite, Help("drift", "X")] = Field(0.2, gt=0, le=1)
    """The same for the Kolmogorov-Smirnov distance; a shift of half a standard deviation gives 0.2."""

    @model_validator(mode="after")
    def _placed(self) -> "ReportOptions":
        if self.output is None and len(self.scores) > 1:
            raise ValueError("output: required for a report of several outputs")
        if not self.against and self.model_fields_set & {"max_psi", "max_ks", "per"}:
            raise ValueError("max-psi, max-ks and per go with against")
        return self
