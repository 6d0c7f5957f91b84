"""`armo-ray bench`: run what the options ask for, or show an earlier run. Imports nothing slow before that."""

import argparse

from armo_ray.bench.options import settings_of


def execute(args: argparse.Namespace) -> int:
    """Run, or show, what parsed options ask for; returns the exit status."""
    settings = settings_of(args) if args.show is None else None
    from armo_ray.bench.run import run, show  # torch and transformers: seconds

    if settings is None:
        show(args.show)
    else:
        run(settings)
    return 0
