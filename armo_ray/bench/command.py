"""`armo-ray bench`: measure, or show an earlier result. Imports torch only after the options are checked."""

import argparse

from armo_ray.bench.options import settings_of


def execute(args: argparse.Namespace) -> int:
    """Measure, or show a result, as the parsed options say; returns the exit status."""
    settings = settings_of(args) if args.show is None else None
    from armo_ray.bench.benchmark import benchmark, show  # importing torch and transformers takes seconds

    if settings is None:
        show(args.show)
    else:
        benchmark(settings)
    return 0
