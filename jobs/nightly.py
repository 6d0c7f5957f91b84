"""The same as `armo-ray nightly`, for `ray job submit --working-dir . -- python -m jobs.nightly NIGHT.toml ...`."""

import sys

from armo_ray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["nightly", *sys.argv[1:]]))
