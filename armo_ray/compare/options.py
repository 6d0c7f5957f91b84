"""The options of `armo-ray compare`."""

from typing import Any

from pydantic import Field, field_validator

from armo_ray.options import NewPlace, Place
from armo_ray.outputs.options import ScoresOptions


class CompareOptions(ScoresOptions):
    """How two outputs over the same rows differ."""

    scores: tuple[Place, Place]
    """Two complete outputs of armo-ray score; the second is compared with the first."""
    output: NewPlace | None = None
    """Directory or URI for comparison.json; nothing may be there yet."""
    movers: int = Field(5, ge=0)
    """Candidates whose rank moves most that are shown, with their text."""

    @field_validator("scores", mode="before")
    @classmethod
    def _two(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError("expected two outputs")
        return value
