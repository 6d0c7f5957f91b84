"""The options of `armo-ray embed`."""

from typing import Annotated, ClassVar, Literal

from armo_ray.options import Help
from armo_ray.score.config import ModelOptions


class EmbedOptions(ModelOptions):
    """What to embed, with which model, and where to write it."""

    command: ClassVar[str] = "embed"
    labels_by_default: ClassVar[bool] = True

    dtype: Annotated[Literal["bfloat16", "float16", "float32"], Help("the model")] = "bfloat16"
    """Type of the model, and of the numbers that are written."""
