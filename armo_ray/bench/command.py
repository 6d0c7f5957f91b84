"""`armo-ray bench`: run the benchmark, or show an earlier run. Imports nothing slow before the options are checked."""

import argparse

from armo_ray.bench.options import settings_of


def execute(args: argparse.Namespace) -> int:
    """Run or show what the parsed options ask for. Returns the exit status."""
    settings = settings_of(args) if args.show is None else None
    from armo_ray.bench.run import run, show  # torch and transformers: seconds

    if settings is None:
        show(args.show)
    else:
        run(settings)
    return 0
