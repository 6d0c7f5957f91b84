"""`armo-ray plan`: print an estimate of each run. Imports nothing slow before the options are checked."""

import json

from armo_ray.exit_status import COMPLETE
from armo_ray.options import Given, load_options
from armo_ray.plan.options import PlanOptions
from armo_ray.score.config import ScoreConfig, load_configs


def run(given: Given) -> int:
    """Print an estimate for each model given. Returns the exit status. Raises ConfigError."""
    unread = {} if given.values.get("tokens_per_row") is None else {"input": "none", "output": "none"}
    configs = load_configs(given.file, unread | given.of(ScoreConfig))
    # the file may give the date
    options = load_options(PlanOptions, None, given.of(PlanOptions) | {"date": configs[0].date})
    from armo_ray.plan.estimate import estimate, estimate_stated
    from armo_ray.plan.show import lines

    for config in configs:
        figures = (estimate if options.tokens_per_row is None else estimate_stated)(config, options)
        print(json.dumps(figures) if options.as_json else "\n".join(lines(figures)), flush=True)
    return COMPLETE
