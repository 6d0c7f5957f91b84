"""`python -m armo_ray ...`: the same as `armo-ray ...`."""

import sys

from armo_ray.cli.main import main

sys.exit(main())
