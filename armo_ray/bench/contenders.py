"""The contenders: functions from prompt groups to Scores, all on the same weights."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.attention as flash

from armo_ray.bench import baselines, rewardbench
from armo_ray.bench.workloads import Group
from armo_ray.engine import RewardModel, Scores
from armo_ray.engine.fp8 import quantize_

Scorer = Callable[[Sequence[Group]], Scores]

_PACKED = {
    "share_prompts": False,
    "fixed_packs": False,
    "needed_rows": False,
    "compile": False,
}
_SHARED = _PACKED | {"share_prompts": True}
# Each optimization by itself, added to sharing.
_OPTIONS = {
    "packed": _PACKED,
    "packed+shared": _SHARED,
    "+needed-rows": _SHARED | {"needed_rows": True},
    "+compile": _SHARED | {"compile": True},
    "+fixed-packs": _SHARED | {"fixed_packs": True},
    "engine": {},
    "engine+compile": {"compile": True},
}


class Contender(NamedTuple):
    """A way to score."""

    score: Scorer
    packs: RewardModel | None  # the model if it packs; None if it pads batches or takes single conversations


def prepare(name: str, model: RewardModel) -> Contender:
    """The contender of this name. May raise any exception if the device or torch lacks what it needs."""
    if name == "+fp8":
        return _quantized(model, _SHARED)
    if name == "fp8+compile":
        return _quantized(model, {"compile": True})
    if name == "rewardbench":
        return Contender(rewardbench.scorer(model), None)
    if name == "+flash-attention-3":
        return _with_flash_attention_3(model)
    if name in _OPTIONS:
        changed = model.with_options(**_OPTIONS[name])
        return Contender(changed.score, changed)
    return Contender(_baseline(name, model), None)


def _baseline(name: str, model: RewardModel) -> Scorer:
    backbone = baselines.plain_backbone(model)
    if name == "one-by-one":
        return partial(baselines.one_by_one, model, backbone)
    batches = {
        "padded-8": partial(baselines.by_arrival, size=8),
        "padded-32": partial(baselines.by_arrival, size=32),
        "sorted": partial(baselines.by_length, token_budget=model.options.token_budget),
    }
    return partial(baselines.in_batches, model, backbone, batches_of=batches[name])


def _quantized(model: RewardModel, options: dict[str, bool]) -> Contender:
    changed = model.with_options(**options)
    changed.backbone = baselines.twin(model.backbone)
    quantize_(changed.backbone)  # replaces layers of the twin; the model keeps its own
    return Contender(changed.score, changed)


def _with_flash_attention_3(model: RewardModel) -> Contender:
    if model.device.type != "cuda" or model.backbone.dtype == torch.float32:
        raise NotImplementedError("needs CUDA and bfloat16 or float16")
    changed = model.with_options(**_SHARED)

    def score(groups: Sequence[Group]) -> Scores:
        flash.activate_flash_attention_impl("FA3")
        try:
            return changed.score(groups)
        finally:
            flash.restore_flash_attention_impl()

    return Contender(score, changed)
