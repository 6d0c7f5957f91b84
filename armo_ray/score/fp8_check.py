"""Comparing float8 with bfloat16 scores on a sample of the input, before all of it is scored in float8."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from armo_ray.errors import ConfigError
from armo_ray.measures.agreement import agreement
from armo_ray.score.job import ModelJob
from armo_ray.score.stages.read import model_directory, read_and_tokenize
from armo_ray.score.stages.unit_block import conversations, unnest
from armo_ray.storage.units import Span

logger = logging.getLogger(__name__)

REPORT = "_fp8.json"  # in the output
CANDIDATES = 512  # in the sample, at most
SPANS = 8  # that the sample is taken from, at most


def fp8_agreement(spans: list[Span], job: ModelJob, device: str) -> dict[str, Any]:
    """Score a sample of the input in bfloat16 and in float8 on one device, and compare the scores.

    The sample consists of the first candidates of up to eight spans, spread evenly over the input. Returns the result
    of `agreement` for the score and every reward.
    """
    from armo_ray.engine import RewardModel
    from armo_ray.engine.fp8 import quantize_

    groups, prompts = _sample(spans, job)
    model = RewardModel.load(
        str(model_directory(job)), None, "bfloat16", device, job.token_budget, family=job.family
    )
    reference = model.score(groups)
    quantize_(model.backbone)
    before, after = (
        {"score": s.score} | dict(zip(model.reward_names, s.rewards.T, strict=True))
        for s in (reference, model.score(groups))
    )
    return agreement(before, after, np.unique(prompts, return_inverse=True)[1])


def _sample(spans: list[Span], job: ModelJob) -> tuple[list[Any], list[str]]:
    """The conversations of the sample, and the prompt id of each."""
    chosen = spans[:: -(-len(spans) // SPANS)]
    groups: list[Any] = []
    prompts: list[str] = []
    for k, span in enumerate(chosen, 1):
        target = k * CANDIDATES // len(chosen)
        for unit in read_and_tokenize(span, job):
            room = target - len(groups)
            groups += conversations(unit)[:room]
            prompts += unnest(unit["scored"])["prompt_id"].to_pylist()[:room]
            if len(groups) >= target:
                break
    return groups, prompts


def check_agreement(report: Mapping[str, Any], min_agreement: float) -> None:
    """Log a report. Raises ConfigError if the rank correlation of the scores is below `min_agreement` or unknown."""
    logger.info(
        "fp8 compared with bfloat16 on %d candidates, %d pairs of candidates of one prompt:",
        report["candidates"],
        report["pairs"],
    )
    for name, column in report["columns"].items():
        rank = "none" if column["spearman"] is None else f"{column['spearman']:.4f}"
        logger.info(
            "  %-36s rank correlation %s, %.2f %% of pairs flipped, largest difference %.4g",
            name,
            rank,
            100 * column["pair_flips"],
            column["largest_difference"],
        )
    correlation = report["columns"]["score"]["spearman"]
    if correlation is None:
        raise ConfigError(
            f"fp8: {report['candidates']} candidates are too few to measure its agreement with bfloat16: use bfloat16"
        )
    if correlation < min_agreement:
        raise ConfigError(
            f"fp8: on a sample of the input, the rank correlation of its scores with those of bfloat16 is "
            f"{correlation:.4f}, less than --min-agreement {min_agreement:g}: use bfloat16, or lower --min-agreement"
        )
