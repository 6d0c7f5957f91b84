"""Log-probabilities of the tokens of responses by a policy, less those by its reference model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from armo_ray.engine.backbone import load_backbone
from armo_ray.engine.decoder import hidden_rows
from armo_ray.engine.device import to_device
from armo_ray.engine.flops import flops, shape_of
from armo_ray.engine.heads import log_normalizers, target_logits
from armo_ray.engine.load_head import read_vocabulary
from armo_ray.engine.options import Options
from armo_ray.engine.packing import Index, Pack
from armo_ray.model.checkpoint import Checkpoint

Tensor = torch.Tensor


class Vocabulary(NamedTuple):
    """The language-model head of a decoder."""

    rows: Tensor  # (V, H), of any floating type
    softcap: float | None  # of its logits

    @classmethod
    def read(cls, checkpoint: Checkpoint, device: torch.device) -> "Vocabulary":
        """The head of a checkpoint on a device."""
        softcap = checkpoint.config.get("final_logit_softcapping")
        return cls(read_vocabulary(checkpoint, device), softcap)

    def log_probabilities(self, hidden: Tensor, index: Tensor, targets: Tensor) -> Tensor:
        """The log-probability (N,) of the tokens `targets` (N,) after the hidden states hidden[index], of (R, H)."""
        hidden = hidden.float()
        of_all = log_normalizers(self.rows, self.softcap, hidden).index_select(0, index)
        return target_logits(self.rows, self.softcap, hidden, index, targets) - of_all


@dataclass(frozen=True)
class LogRatios:
    """A reference model on the devices of a policy, and the language-model heads of both on the last one."""

    backbone: nn.Module  # of the reference model
    policy: Vocabulary
    reference: Vocabulary

    @classmethod
    def load(
        cls, policy: Checkpoint, reference: Checkpoint, dtype: str, devices: Sequence[torch.device]
    ) -> "LogRatios":
        """Load the reference model. Raises ConfigError as `load_backbone`."""
        backbone = load_backbone(reference, dtype, devices)
        return cls(
            backbone, *(Vocabulary.read(checkpoint, devices[-1]) for checkpoint in (policy, reference))
        )

    def of_tokens(self, pack: Pack, rows: Index, hidden: Tensor, index: Tensor, options: Options) -> Tensor:
        """log p - log p_reference (N,) of the token after each of the N positions that are read in a pack.

        Args:
            rows: the distinct tokens of the pack (R,) that are read.
            hidden: the policy's final hidden states (R, H) of these tokens.
            index: for each position that is read, its place (N,) in `rows`.
        """
        targets = to_device(pack.targets, hidden.device)
        own = self.policy.log_probabilities(hidden, index, targets)
        other = hidden_rows(self.backbone, pack, rows, options)
        return own - self.reference.log_probabilities(other, index, targets)

    def flops(self, pack: Pack) -> int:
        """Operations of the reference model, and of the heads of both for every token that is read."""
        heads = 2 * sum(vocabulary.rows.numel() for vocabulary in (self.policy, self.reference))
        positions = pack.position_ids[: pack.num_tokens]
        return flops(shape_of(self.backbone), positions) + heads * len(np.unique(pack.read_index))
