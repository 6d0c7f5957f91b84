"""`armo-ray score`: what the command runs and prints. Imports nothing slow before the options are checked."""

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from armo_ray.options import Given
from armo_ray.score.config import ModelOptions, load_configs
from armo_ray.score.run_options import RunOptions
from armo_ray.score.status import errors_told, of_totals
from armo_ray.signals import limited

if TYPE_CHECKING:
    from armo_ray.storage.records import Totals  # imports pyarrow

logger = logging.getLogger(__name__)


def run(given: Given) -> int:
    """Score with each model given. Returns the exit status. Raises ConfigError before any work starts."""
    began = time.monotonic()
    with errors_told():
        return score_all(load_configs(given.file, given.values), began)


def score_all(configs: Sequence[ModelOptions], began: float) -> int:
    """Run each configuration in turn, after checking all of them. Returns and logs the worst status.

    began: when --max-runtime began to count, by time.monotonic().
    """
    from armo_ray.score import trial
    from armo_ray.score.job import prepare_all

    prepared = prepare_all(configs, check=trial.check)
    from armo_ray.score import pipeline

    limit, statuses = configs[0].max_runtime, []
    with limited(limit and limit - (time.monotonic() - began)):
        for (job, spans), config in zip(prepared, configs, strict=True):
            totals, totals_of_run = pipeline.run(job, spans, config)
            summarize(totals, config)
            statuses.append(of_totals(totals_of_run, config))
            if len(configs) > 1:
                logger.info("%s: %s", config.output, statuses[-1])
    worst = max(statuses)
    logger.log(logging.ERROR if worst.code else logging.INFO, "%s", worst)
    return worst.code


def summarize(totals: "Totals", config: RunOptions) -> None:
    """Log how many candidates of an output are scored and rejected."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(totals.rejected.items()))
    logger.info(
        "%s: %d of %d candidates %s, %d rejected%s",
        config.output,
        totals.scored,
        totals.candidates,
        "embedded" if config.command == "embed" else "scored",
        totals.num_rejected,
        f" ({reasons})" if reasons else "",
    )
