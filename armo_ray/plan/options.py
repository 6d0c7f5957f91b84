"""The options of `armo-ray plan`, besides those of `armo-ray score`."""

from typing import Annotated

from pydantic import Field, model_validator

from armo_ray.options import DatedOptions, Help, Place


class PlanOptions(DatedOptions):
    """How fast and expensive replicas are, and how much of the input to read."""

    computed_tokens_per_second: Annotated[float | None, Help("speed and cost", "X")] = Field(
        None, gt=0, allow_inf_nan=False
    )
    """Speed of a replica, shared prefixes counted once; default: measured."""
    previous: Annotated[Place | None, Help("speed and cost", "OUT")] = None
    """Earlier output to take the speed of a replica from; default: --output."""
    price: Annotated[float | None, Help("speed and cost", "USD")] = Field(None, ge=0, allow_inf_nan=False)
    """Price per hour of a GPU, or of a replica without one."""
    sample: Annotated[int, Help("what is read", "N")] = Field(64, ge=8)
    """Places of the input to read, about 64 KiB at each."""
    show: Annotated[int, Help("what is shown", "N")] = Field(0, ge=0)
    """Print the first N conversations as the model will read them."""
    as_json: Annotated[bool, Help("what is shown", flag="--json")] = False
    """Print one JSON object per model."""

    @model_validator(mode="after")
    def _one_rate(self) -> "PlanOptions":
        if self.previous is not None and self.computed_tokens_per_second is not None:
            raise ValueError(
                "previous and computed-tokens-per-second both set the speed of a replica: give one"
            )
        return self
