"""`armo-ray explain`: print the trace of a row."""

from armo_ray.explain.find import find
from armo_ray.explain.options import ExplainOptions
from armo_ray.explain.show import lines


def run(options: ExplainOptions) -> None:
    """Print all that is known about a row. Raises ConfigError if there is no such output or row."""
    print("\n".join(lines(find(options.output, options.row), options.model, options.all_tokens)))
