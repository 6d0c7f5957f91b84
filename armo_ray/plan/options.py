"""The options of `armo-ray plan` besides those of `armo-ray score`."""

from pydantic import Field, model_validator

from armo_ray.options import Options, Place


class PlanOptions(Options):
    """How fast replicas are, what they cost, and how much of the input is looked at."""

    tokens_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Tokens that a replica computes in a second, each shared prefix counted once; default: as measured."""
    previous: Place | None = None
    """Earlier output whose commit records tell how fast replicas are; default: this output's own, if it has any."""
    price: float | None = Field(None, ge=0, allow_inf_nan=False)
    """USD for an hour of one GPU, or of one replica without GPUs."""
    sample: int = Field(64, ge=8)
    """Places of the input to read: about 64 KiB of rows at each."""
    show: int = Field(0, ge=0)
    """Print so many of the first conversations as the model will read them, with its special tokens."""

    @model_validator(mode="after")
    def _one_rate(self) -> "PlanOptions":
        if self.previous is not None and self.tokens_per_second is not None:
            raise ValueError("previous and tokens-per-second both tell how fast replicas are: give one")
        return self
