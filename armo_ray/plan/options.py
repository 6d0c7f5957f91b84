"""The options of `armo-ray plan`, besides those of `armo-ray score`."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from armo_ray.options import DatedOptions, Help, Place

# GPUs whose speed can be estimated, with CUDA's name of each
GPUS = {
    "a100": "NVIDIA A100-SXM4-80GB",
    "h100": "NVIDIA H100 80GB HBM3",
    "h100-pcie": "NVIDIA H100 PCIe",
    "h200": "NVIDIA H200",
    "l4": "NVIDIA L4",
    "l40s": "NVIDIA L40S",
}


def _count(value: Any) -> Any:
    """1e8 and "100e6" as whole numbers."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return int(number) if number.is_integer() else value


def _known_gpu(name: Any) -> Any:
    if str(name).lower() not in GPUS:
        raise ValueError(f"unknown GPU; expected {', '.join(GPUS)}")
    return str(name).lower()


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
    gpu: Annotated[str | None, Help("speed and cost", "NAME"), BeforeValidator(_known_gpu)] = None
    """Estimate the speed from a data sheet: a100, h100, h100-pcie, h200, l4 or l40s."""
    rows: Annotated[int | None, Help("what is read", "N"), BeforeValidator(_count)] = Field(None, ge=1)
    """Plan for N rows like those of the input, whatever is there or committed."""
    tokens_per_row: Annotated[float | None, Help("what is read", "X")] = Field(
        None, gt=0, allow_inf_nan=False
    )
    """With --rows, instead of an input: rows of one conversation with this many tokens."""
    sample: Annotated[int, Help("what is read", "N")] = Field(64, ge=8)
    """Places of the input to read, about 64 KiB at each."""
    show: Annotated[int, Help("what is shown", "N")] = Field(0, ge=0)
    """Print the first N conversations as the model will read them."""
    as_json: Annotated[bool, Help("what is shown", flag="--json")] = False
    """Print one JSON object per model."""

    @model_validator(mode="after")
    def _one_rate(self) -> "PlanOptions":
        speeds = [
            n for n in ("previous", "computed_tokens_per_second", "gpu") if getattr(self, n) is not None
        ]
        if len(speeds) > 1:
            names = " and ".join(name.replace("_", "-") for name in speeds)
            raise ValueError(
                f"{names} {'both' if len(speeds) == 2 else 'all'} set the speed of a replica: give one"
            )
        if self.tokens_per_row is not None and self.rows is None:
            raise ValueError("tokens-per-row: give --rows, too")
        if self.tokens_per_row is not None and self.show:
            raise ValueError("show: with tokens-per-row no input is read")
        return self
