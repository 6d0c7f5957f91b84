"""`armo-ray judge`: what the command runs and prints. Imports nothing slow before the options are checked."""

import logging

from armo_ray.exit_status import COMPLETE
from armo_ray.judge.options import JudgeOptions
from armo_ray.options import Given, load_options
from armo_ray.score.command import summarize
from armo_ray.score.status import errors_told, of_totals
from armo_ray.signals import limited

logger = logging.getLogger(__name__)


def run(given: Given) -> int:
    """Judge an input. Returns the exit status. Raises ConfigError before any work starts."""
    with errors_told():
        return _judge(load_options(JudgeOptions, given.file, given.values))


def _judge(options: JudgeOptions) -> int:
    from armo_ray.judge.job import prepare
    from armo_ray.judge.trial import check, estimate

    if options.dry_run:
        print("\n".join(estimate(*prepare(options, write=False), options)))
        return COMPLETE
    job, spans = prepare(options, check_rows=check)
    from armo_ray.judge.checked import check_judge
    from armo_ray.judge.pipeline import execute
    from armo_ray.judge.retry import set_aside
    from armo_ray.score.pipeline import commit_units

    with limited(options.max_runtime):
        if options.verify:
            check_judge(job)
        if options.retry:
            set_aside(job, spans, options.retry)
        totals, totals_of_run = commit_units(job, spans, options, execute)
    summarize(totals, options)
    status = of_totals(totals_of_run, options)
    logger.log(logging.ERROR if status.code else logging.INFO, "%s", status)
    return status.code
