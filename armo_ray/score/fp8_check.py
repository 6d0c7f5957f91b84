"""What float8 does to the scores of the data at hand, before all of it is scored that way."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from armo_ray.errors import ConfigError
from armo_ray.measures.agreement import agreement
from armo_ray.score.job import Job
from armo_ray.score.stages.read import model_directory, read_and_tokenize
from armo_ray.score.stages.unit_table import conversations, unnest
from armo_ray.storage.units import Span

logger = logging.getLogger(__name__)

REPORT = "_fp8.json"  # in the output
CANDIDATES = 512  # in the sample
SPANS = 8  # that it is taken from


def fp8_agreement(spans: list[Span], job: Job, device: str) -> dict[str, Any]:
    """Score a sample of the input in bfloat16 and in float8 on one device, and compare.

    The sample is the first candidates of up to eight shards, spread over the input. Returns what `agreement`
    does, for the score and for every reward.
    """
    from armo_ray.engine import RewardModel
    from armo_ray.engine.fp8 import quantize_

    groups, prompts = _sample(spans, job)
    model = RewardModel.load(
        str(model_directory(job)), None, "bfloat16", device, job.token_budget, family=job.family.name
    )
    reference = model.score(groups)
    quantize_(model.backbone)
    before, after = (
        {"score": s.score} | dict(zip(model.reward_names, s.rewards.T, strict=True))
        for s in (reference, model.score(groups))
    )
    return agreement(before, after, np.unique(prompts, return_inverse=True)[1])


def _sample(spans: list[Span], job: Job) -> tuple[list[Any], list[str]]:
    """Conversations, and the id of the prompt of each."""
    chosen = spans[:: -(-len(spans) // SPANS)]
    groups: list[Any] = []
    prompts: list[str] = []
    for k, span in enumerate(chosen, 1):
        enough = k * CANDIDATES // len(chosen)
        for unit in read_and_tokenize(span, job):
            room = enough - len(groups)
            groups += conversations(unit)[:room]
            prompts += unnest(unit["scored"])["prompt_id"].to_pylist()[:room]
            if len(groups) >= enough:
                break
    return groups, prompts


def judge(report: Mapping[str, Any], min_agreement: float) -> None:
    """Say what a report holds. Raises ConfigError where scores rank less alike than they have to."""
    logger.info(
        "fp8 against bfloat16 on %d candidates, %d pairs of one prompt:",
        report["candidates"],
        report["pairs"],
    )
    for name, found in report["columns"].items():
        rank = "none" if found["spearman"] is None else f"{found['spearman']:.4f}"
        logger.info(
            "  %-36s rank correlation %s, %.2f %% of pairs flipped, largest difference %.4g",
            name,
            rank,
            100 * found["pair_flips"],
            found["largest_difference"],
        )
    found = report["columns"]["score"]["spearman"]
    if found is None:
        raise ConfigError(
            f"fp8: its agreement with bfloat16 cannot be told from {report['candidates']} candidates: use bfloat16"
        )
    if found < min_agreement:
        raise ConfigError(
            f"fp8: its scores rank like those of bfloat16 with a correlation of {found:.4f}, less than "
            f"--min-agreement {min_agreement:g}, on a sample of the input: use bfloat16, or lower the bar"
        )
