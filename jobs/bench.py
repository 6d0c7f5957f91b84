"""The same as `armo-ray bench`, for `ray job submit --working-dir . -- python -m jobs.bench ...`."""

import sys

from armo_ray.bench.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
