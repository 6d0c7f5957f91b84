"""The check of a judge before a run, kept with its output."""

import logging
from dataclasses import asdict

from armo_ray.judge.job import JudgeJob
from armo_ray.judging.self_check import CHECKED, lines, self_check
from armo_ray.storage.json_files import to_json
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)


def check_judge(job: JudgeJob) -> None:
    """Measure the judge, log the result, and write it beside the scores, unless an earlier run did."""
    store = Store(job.output)
    if store.read_json(CHECKED) is not None:
        return
    measured = self_check(job.judge, job.endpoint)
    logger.info("the judge on %d requests:\n%s", measured.requests, "\n".join(lines(measured)))
    store.write(CHECKED, to_json(asdict(measured)))
