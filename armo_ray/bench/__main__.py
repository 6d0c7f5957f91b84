"""`python -m armo_ray.bench ...`: the same as `armo-ray bench`, but needs only the engine's packages."""

import argparse
import logging
import sys
from collections.abc import Sequence

from armo_ray import bench
from armo_ray.bench.command import execute
from armo_ray.bench.options import add_arguments
from armo_ray.errors import ConfigError
from armo_ray.formatting.help import HelpFormatter


def main(argv: Sequence[str] | None = None) -> int:
    """Parse options and execute the benchmark; returns its exit status."""
    parser = argparse.ArgumentParser(
        "python -m armo_ray.bench", description=bench.__doc__, formatter_class=HelpFormatter
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        return execute(args)
    except ConfigError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
