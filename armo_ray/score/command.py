"""`armo-ray score`: what the command runs and prints. Imports nothing slow before the options are checked."""

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from armo_ray.exit_status import COMPLETE, TOO_MANY_REJECTS
from armo_ray.options import Given
from armo_ray.score.config import ScoreConfig, load_configs
from armo_ray.signals import limited

if TYPE_CHECKING:
    from armo_ray.storage.records import Totals  # imports pyarrow

logger = logging.getLogger(__name__)


def run(given: Given) -> int:
    """Score with each model given. Returns the exit status. Raises ConfigError before any work starts."""
    began = time.monotonic()
    return score_all(load_configs(given.file, given.values), began)


def score_all(configs: Sequence[ScoreConfig], began: float) -> int:
    """Score with each configuration in turn, after checking all of them.

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
            _summarize(totals, config)
            statuses.append(_status(totals_of_run, config))
    return max(statuses)


def _summarize(totals: "Totals", config: ScoreConfig) -> None:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(totals.rejected.items()))
    logger.info(
        "%s: %d of %d candidates scored, %d rejected%s",
        config.output,
        totals.scored,
        totals.candidates,
        totals.num_rejected,
        f" ({reasons})" if reasons else "",
    )


def _status(totals: "Totals", config: ScoreConfig) -> int:
    """The exit status, which depends on the shards of this run alone."""
    # an unreadable shard counts as one reject, however many rows it held: compare shards with shards
    unreadable = totals.rejected.get("unreadable_shard", 0) / max(totals.shards or 0, 1)
    # --winner asks for rows to be skipped
    rejected = totals.num_rejected - totals.rejected.get("skipped", 0)
    fraction = max(rejected / max(totals.candidates, 1), unreadable)
    if fraction <= config.max_reject_fraction:
        return COMPLETE
    logger.error(
        "rejects are %.2f %%, more than --max-reject-fraction %g: see %s/rejects",
        100 * fraction,
        config.max_reject_fraction,
        config.output,
    )
    return TOO_MANY_REJECTS
