"""How scores are computed without the engine: plain transformers, as users write it, and fairly.

The bare decoder without its language-model head, no cache, sdpa attention, one conversation or one padded
batch a forward pass, and the same float32 head. Batches stay on the device and are fetched at the end.
"""

import copy
import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from armo_ray.bench.workloads import Group, sequences_of
from armo_ray.engine import RewardModel, Scores
from armo_ray.engine.heads import HeadOutput
from armo_ray.engine.packing import Ids

Batches = list[list[int]]


def twin(backbone: PreTrainedModel) -> PreTrainedModel:
    """The same decoder once more, on the same weights."""
    tensors = itertools.chain(backbone.parameters(), backbone.buffers())
    return copy.deepcopy(backbone, {id(tensor): tensor for tensor in tensors})


def plain_backbone(model: RewardModel) -> PreTrainedModel:
    """The decoder with transformers' own attention."""
    backbone = twin(model.backbone)
    backbone.set_attn_implementation("sdpa")
    return backbone


def reference(model: RewardModel, groups: Sequence[Group]) -> Scores:
    """Scores in float32, one by one. The float32 copy of the weights is gone afterwards."""
    backbone = plain_backbone(model)
    if backbone.dtype != torch.float32:
        backbone = copy.deepcopy(backbone).float()
    return one_by_one(model, backbone, groups)


def one_by_one(model: RewardModel, backbone: PreTrainedModel, groups: Sequence[Group]) -> Scores:
    """The loop of the model card: one conversation a forward pass, its result fetched before the next."""
    started = time.perf_counter()
    sequences = sequences_of(groups)
    outputs = [HeadOutput(*(x.cpu() for x in _forward(model, backbone, [ids]))) for ids in sequences]
    return _scores(outputs, sequences, [[i] for i in range(len(sequences))], started)


def in_batches(
    model: RewardModel,
    backbone: PreTrainedModel,
    groups: Sequence[Group],
    batches_of: Callable[[Sequence[int]], Batches],
) -> Scores:
    """Right-padded batches with an attention mask; `batches_of` says from their lengths which go together."""
    started = time.perf_counter()
    sequences = sequences_of(groups)
    batches = batches_of([len(ids) for ids in sequences])
    outputs = [_forward(model, backbone, [sequences[i] for i in batch]) for batch in batches]
    return _scores(outputs, sequences, batches, started)


def by_arrival(lengths: Sequence[int], size: int) -> Batches:
    """Batches of `size` in the order of arrival."""
    return [list(range(at, min(at + size, len(lengths)))) for at in range(0, len(lengths), size)]


def by_length(lengths: Sequence[int], token_budget: int) -> Batches:
    """Batches of similar lengths, longest first, of at most `token_budget` tokens with their padding."""
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
    alone = len(sequences) == 1  # nothing to mask
    mask = None if alone else (torch.arange(input_ids.shape[1], device=device) <= last[:, None]).long()
    hidden = backbone(input_ids, attention_mask=mask, use_cache=False).last_hidden_state  # (B, longest, H)
    lengths = torch.tensor(list(map(len, reads)), device=device)
    return model.head.compute(hidden[*places], torch.arange(places.shape[1], device=device), lengths)


def _scores(outputs: list[HeadOutput], sequences: Sequence[Ids], batches: Batches, started: float) -> Scores:
    inverse = np.argsort(np.concatenate(batches))
    parts = zip(*(output[:3] for output in outputs), strict=True)
    score, rewards, gating = (torch.cat(part).cpu().numpy()[inverse] for part in parts)
    computed = sum(max(len(sequences[i]) for i in batch) * len(batch) for batch in batches)
    seconds = time.perf_counter() - started
    return Scores(score, rewards, gating, sum(map(len, sequences)), computed, len(batches), seconds)
