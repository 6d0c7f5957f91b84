"""The options of `armo-ray tiny-model`."""

from typing import Annotated, Literal

from pydantic import Field

from armo_ray.options import FamilyName, Help, Name, Options


class TinyModelOptions(Options):
    """Write a tiny random model."""

    directory: Annotated[Name, Help("required", "DIR", word=True)]
    """Directory to write; it must be empty or not exist."""
    family: Annotated[FamilyName, Help("the model", "NAME")] = "armorm"
    """Family of the model, or a TOML file that describes one."""
    backbone: Annotated[Literal["llama", "mistral", "qwen2", "qwen3", "gemma2"] | None, Help("the model")] = (
        None
    )
    """Kind of decoder; default: that of the family's models, usually llama."""
    seed: Annotated[int, Help("the model")] = Field(0, ge=-(2**63), lt=2**64)
    """Seed of the weights; the same seed gives the same weights."""
