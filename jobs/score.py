"""The same as `armo-ray score`, for `ray job submit --working-dir . -- python -m jobs.score CONFIG.toml ...`."""

import sys

from armo_ray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
