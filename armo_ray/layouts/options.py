"""The options of `armo-ray layouts`."""

from typing import Annotated

from armo_ray.options import Help, Name, Options


class LayoutsOptions(Options):
    """List the layouts of public data sets."""

    name: Annotated[Name | None, Help("what is shown", "NAME", word=True)] = None
    """One layout; default: all of them."""
