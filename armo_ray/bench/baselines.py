"""Scoring without the engine: plain transformers code as users write it, made as fast as is fair.

It uses the bare decoder without the language-model head, no cache, sdpa attention, one conversation or one padded
batch per forward pass, and the same float32 head. Results stay on the device and are fetched at the end.
"""

import copy
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, PreTrainedModel

from armo_ray.bench.workloads import Group, sequences_of
from armo_ray.engine import RewardModel, Scores
from armo_ray.engine.heads import HeadOutput
from armo_ray.engine.llama import Llama
from armo_ray.engine.packing import Ids

Batches = list[list[int]]


def twin(backbone: nn.Module) -> nn.Module:
    """A copy of the decoder that shares its weights."""
    tensors = itertools.chain(backbone.parameters(), backbone.buffers())
    return copy.deepcopy(backbone, {id(tensor): tensor for tensor in tensors})


def plain_backbone(model: RewardModel) -> PreTrainedModel:
    """transformers' decoder with its own attention, on the model's weights."""
    own = model.backbone
    backbone: Any = _of_llama(own) if isinstance(own, Llama) else twin(own)
    backbone.set_attn_implementation("sdpa")
    return backbone


def _of_llama(own: Llama) -> PreTrainedModel:
    auto: Any = AutoModel
    windowed = {"use_sliding_window": own.config.sliding_window is not None}
    layer_types = {"layer_types": list(own.config.layer_types)}
    config = AutoConfig.for_model(**asdict(own.config) | windowed | layer_types)
    with torch.device("meta"):
        backbone = auto.from_config(config, dtype=own.dtype)
    backbone.load_state_dict(own.state_dict(), assign=True)
    backbone.rotary_emb = type(backbone.rotary_emb)(config).to(own.frequencies.device)  # not in the state
    return backbone.eval().requires_grad_(False)


def reference(model: RewardModel, groups: Sequence[Group]) -> Scores:
    """Scores in float32, one conversation at a time. The float32 copy of the weights is freed afterwards."""
    backbone = plain_backbone(model)
    if backbone.dtype != torch.float32:
        backbone = copy.deepcopy(backbone).float()
    return one_by_one(model, backbone, groups)


def one_by_one(model: RewardModel, backbone: PreTrainedModel, groups: Sequence[Group]) -> Scores:
    """The loop of the model card: one conversation per forward pass, with its result fetched before the next."""
    started = time.perf_counter()
    sequences = sequences_of(groups)
    outputs = [HeadOutput(*(x.cpu() for x in _forward(model, backbone, [ids]))) for ids in sequences]
    return scores_of(outputs, sequences, [[i] for i in range(len(sequences))], started)


def in_batches(
    model: RewardModel,
    backbone: PreTrainedModel,
    groups: Sequence[Group],
    batches_of: Callable[[Sequence[int]], Batches],
) -> Scores:
    """Right-padded batches with an attention mask; `batches_of` groups conversations by their lengths in tokens."""
    started = time.perf_counter()
    sequences = sequences_of(groups)
    batches = batches_of([len(ids) for ids in sequences])
    outputs = [_forward(model, backbone, [sequences[i] for i in batch]) for batch in batches]
    return scores_of(outputs, sequences, batches, started)


def by_arrival(lengths: Sequence[int], size: int) -> Batches:
    """Batches of `size` conversations in the order of arrival."""
    return [list(range(at, min(at + size, len(lengths)))) for at in range(0, len(lengths), size)]


def by_length(lengths: Sequence[int], token_budget: int) -> Batches:
    """Batches of similar lengths, longest first, with at most `token_budget` tokens including padding."""
    batches: Batches = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or longest * (len(batches[-1]) + 1) > token_budget:
            batches.append([])
            longest = lengths[i]
        batches[-1].append(i)
    return batches


@torch.inference_mode()
def _forward(model: RewardModel, backbone: PreTrainedModel, sequences: Sequence[Ids]) -> HeadOutput:
    device = model.device
    last = torch.tensor([len(ids) - 1 for ids in sequences], device=device)
    reads = [model.head.positions(ids) for ids in sequences]
    places = torch.tensor([(row, at) for row, read in enumerate(reads) for at in read], device=device).T
    input_ids = pad_sequence([torch.from_numpy(ids).long() for ids in sequences], batch_first=True).to(device)
    alone = len(sequences) == 1  # needs no mask
    mask = None if alone else (torch.arange(input_ids.shape[1], device=device) <= last[:, None]).long()
    hidden = backbone(input_ids, attention_mask=mask, use_cache=False).last_hidden_state  # (B, longest, H)
    lengths = torch.tensor(list(map(len, reads)), device=device)
    return model.head.compute(hidden[*places], torch.arange(places.shape[1], device=device), lengths)


def scores_of(
    outputs: list[HeadOutput], sequences: Sequence[Ids], batches: Batches, started: float
) -> Scores:
    """The outputs of padded batches in the order of arrival; `started` is on time.perf_counter()."""
    inverse = np.argsort(np.concatenate(batches))
    columns = zip(*(output[:3] for output in outputs), strict=True)
    score, rewards, gating = (torch.cat(column).cpu().numpy()[inverse] for column in columns)
    computed = sum(max(len(sequences[i]) for i in batch) * len(batch) for batch in batches)
    seconds = time.perf_counter() - started
    return Scores(score, rewards, gating, sum(map(len, sequences)), computed, len(batches), seconds)
