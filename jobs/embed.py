"""The same as `armo-ray embed`, for `ray job submit --working-dir . -- python -m jobs.embed CONFIG.toml ...`."""

import sys

from armo_ray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
