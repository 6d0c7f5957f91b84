"""The options of `armo-ray report`."""

from pydantic import Field, model_validator

from armo_ray.options import Finite, NewPlace, Place, Places
from armo_ray.outputs.options import ScoresOptions


class ReportOptions(ScoresOptions):
    """A page and its numbers about outputs, complete or not."""

    scores: Places = Field(min_length=1)
    """Outputs of armo-ray score, all of one model; of one that is not complete, what is committed."""
    output: NewPlace | None = None
    """Directory or URI for report.html and report.json, or the .html file; default: the output itself."""
    against: Place | None = None
    """An older output of the same model: tell how far the numbers moved away from it."""
    max_psi: Finite = Field(0.25, gt=0)
    """Population stability index, over the older output's deciles, above which a column has drifted, if it is more
    than chance reaches once in 1,000 times with so few prompts."""
    max_ks: Finite = Field(0.2, gt=0, le=1)
    """Kolmogorov-Smirnov distance above which it has, likewise: a shift of half a deviation gives 0.2."""
    price: Finite | None = Field(None, ge=0)
    """USD for an hour of one GPU, or of one replica without GPUs: tell what the run cost."""
    examples: int = Field(5, ge=0, le=50)
    """Candidates with the highest and with the lowest scores that are shown, and rejects of each reason."""

    @model_validator(mode="after")
    def _placed(self) -> "ReportOptions":
        if self.output is None and len(self.scores) > 1:
            raise ValueError("output: a report of several outputs needs one")
        if self.against is None and self.model_fields_set & {"max_psi", "max_ks"}:
            raise ValueError("max-psi and max-ks go with against")
        return self
