"""The options of `armo-ray compare`."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from armo_ray.options import Help, NewPlace, Place
from armo_ray.outputs.options import ScoresOptions


class CompareOptions(ScoresOptions):
    """Compare two outputs over the same rows."""

    scores: Annotated[tuple[Place, Place], Help("required", "OUT", word=True)]
    """Two complete outputs of score, the old one first."""
    movers: Annotated[int, Help("what is shown", "N")] = Field(5, ge=0)
    """Show the candidates whose rank moved most, with their text."""
    output: Annotated[NewPlace | None, Help("what is written", "DIR")] = None
    """Directory or URI for comparison.json; nothing may be there yet."""

    @field_validator("scores", mode="before")
    @classmethod
    def _two(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError("expected two outputs")
        return value
