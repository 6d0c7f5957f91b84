"""The options of `armo-ray models`."""

from typing import Annotated

from armo_ray.options import Help, Name, Options


class ModelsOptions(Options):
    """List the families of models that can be scored with."""

    name: Annotated[Name | None, Help("what is shown", "NAME", word=True)] = None
    """One family; default: all of them."""
    markdown: Annotated[bool, Help("what is shown")] = False
    """Print the table of the README."""
