"""RewardBench's own pipeline for ArmoRM (package rewardbench), on the same weights and token ids.

Its code scores each batch. As by default in its command, batches hold 8 conversations in the order of arrival, padded
on the left and not truncated. Two of its inputs are replaced: its tokenizer with the ids that the other contenders get,
and ArmoRM's remote code with transformers' decoder and the same head.
"""

import importlib.util
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from armo_ray.bench import baselines
from armo_ray.bench.workloads import ARRIVAL_BATCH, Group, sequences_of
from armo_ray.engine import RewardModel, Scores
from armo_ray.engine.heads import HeadOutput
from armo_ray.engine.packing import Ids
from armo_ray.errors import ConfigError

INSTALL = "pip install --no-deps rewardbench==0.1.4"


def scorer(model: RewardModel) -> Any:
    """The contender's function. Raises ConfigError if the package is not installed."""
    return partial(_score, _pipeline_class(), model, baselines.plain_backbone(model))


def _pipeline_class() -> Any:
    """ArmoRMPipeline from its file: importing the package would need all of RewardBench's dependencies."""
    package = importlib.util.find_spec("rewardbench")
    if package is None or not package.submodule_search_locations:
        raise ConfigError(f"RewardBench is not installed: {INSTALL}")
    file = Path(package.submodule_search_locations[0]) / "models" / "armorm.py"
    spec = importlib.util.spec_from_file_location("rewardbench_armorm", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ArmoRMPipeline


def _score(pipeline_class: Any, model: RewardModel, backbone: Any, groups: Sequence[Group]) -> Scores:
    started = time.perf_counter()
    sequences = sequences_of(groups)
    stand_in = _Model(model, backbone)
    pipeline = pipeline_class("text-classification", model=stand_in, tokenizer=partial(_padded, model.device))
    batches = baselines.by_arrival([len(ids) for ids in sequences], ARRIVAL_BATCH)
    for batch in batches:
        logits = pipeline([sequences[i] for i in batch], batch_size=ARRIVAL_BATCH, truncation=False)
        logits.float().cpu()  # as RewardBench does before the next batch
    return baselines.scores_of(stand_in.outputs, sequences, batches, started)


class _Inputs(dict[str, torch.Tensor]):
    """The tensors of a batch, already on the model's device: the pipeline asks for "cuda" wherever it runs."""

    def to(self, device: str) -> "_Inputs":
        return self


def _padded(device: torch.device, samples: Sequence[Ids], **_: Any) -> _Inputs:
    sequences = [torch.from_numpy(ids).long() for ids in samples]
    ids, mask = (
        pad_sequence(rows, batch_first=True, padding_side="left").to(device)
        for rows in (sequences, [torch.ones_like(row) for row in sequences])
    )
    return _Inputs(input_ids=ids, attention_mask=mask)


class _Model:
    """Takes the place of ArmoRM's remote code in the pipeline."""

    def __init__(self, model: RewardModel, backbone: Any) -> None:
        self.head = model.head
        self.backbone = backbone
        self.outputs: list[HeadOutput] = []

    def eval(self) -> "_Model":
        return self

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        hidden = self.backbone(input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        starts = attention_mask.argmax(dim=1).tolist()
        rows = input_ids.cpu().numpy()
        reads = [
            [start + at for at in self.head.positions(ids[start:])]
            for ids, start in zip(rows, starts, strict=True)
        ]
        places = torch.tensor([(row, at) for row, read in enumerate(reads) for at in read]).T.to(
            hidden.device
        )
        lengths = torch.tensor(list(map(len, reads)), device=hidden.device)
        index = torch.arange(places.shape[1], device=hidden.device)
        self.outputs.append(self.head.compute(hidden[*places], index, lengths))
        return SimpleNamespace(logits=self.outputs[-1].score)
