"""`armo-ray layouts`: print the named layouts."""

from armo_ray.layouts.options import LayoutsOptions
from armo_ray.layouts.show import lines


def run(options: LayoutsOptions) -> None:
    """Print one layout, or all. Raises ConfigError if there is none of the name."""
    print("\n".join(lines(options.name)))
