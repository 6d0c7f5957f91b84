"""The same as `armo-ray fit`, for `ray job submit --working-dir . -- python -m jobs.fit jobs/fit.toml ...`."""

import sys

from armo_ray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["fit", *sys.argv[1:]]))
