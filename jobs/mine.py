"""The same as `armo-ray mine`, for `ray job submit --working-dir . -- python -m jobs.mine OUT --engine ray ...`."""

import sys

from armo_ray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["mine", *sys.argv[1:]]))
