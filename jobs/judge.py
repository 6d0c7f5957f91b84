"""The same as `armo-ray judge`, for `ray job submit --working-dir . -- python -m jobs.judge CONFIG.toml ...`."""

import sys

from armo_ray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["judge", *sys.argv[1:]]))
