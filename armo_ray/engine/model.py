"""The reward model: conversations as token ids in, rewards, gates and scores out."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from armo_ray.chat import Chat
from armo_ray.engine import attention
from armo_ray.engine.backbone import load_backbone
from armo_ray.engine.checkpoint import Checkpoint, inspect
from armo_ray.engine.heads import ArmoHead, HeadOutput, find_gate
from armo_ray.engine.packing import Ids, Pack, make_packs
from armo_ray.errors import ConfigError

# GEMMs of an 8B model are full at 16k rows; on a CPU they are at 150 and larger packs fall out of its cache.
TOKEN_BUDGETS = {"cuda": 16_384, "cpu": 1_024}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

TokenIds = Sequence[int] | npt.NDArray[np.integer[Any]]
Group = tuple[TokenIds, Sequence[TokenIds]]
Floats = npt.NDArray[np.float32]


class Scores(NamedTuple):
    """One row per candidate, in the order of the groups and of the candidates in them; all float32.

    `score[i] == sum(rewards[i] * (gating[i] @ transform.T))` to rounding.
    """

    score: Floats  # (C,)
    rewards: Floats  # (C, K) raw objectives, in the order of RewardModel.reward_names
    gating: Floats  # (C, K) a function of the prompt only
    num_tokens: int  # of all conversations, each counted whole
    computed_tokens: int  # that went through the backbone, after sharing, padding included
    num_packs: int
    model_seconds: float  # spent in forward passes (on CUDA: in launching them and waiting for the last)


class RewardModel:
    """ArmoRM on one device.

    >>> model = RewardModel.load("RLHFlow/ArmoRM-Llama3-8B-v0.1", dtype="bfloat16", device="cuda")
    >>> scores = model.score([(prompt_ids, [answer_ids, other_answer_ids])])
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: str = "bfloat16",
        device: str | None = None,
        token_budget: int | None = None,
        share_prompts: bool = True,
        fixed_packs: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype}: expected one of {', '.join(DTYPES)}")
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"device {device}: torch finds no CUDA device on this machine")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.reward_names = checkpoint.reward_names
        self.token_budget = token_budget or TOKEN_BUDGETS.get(self.device.type, 8_192)
        self.share_prompts = share_prompts
        self.fixed_packs = fixed_packs
        self._pattern = np.array(Chat.load(checkpoint.path).answer_pattern, np.int32)
        self._head = ArmoHead(checkpoint, self.device)
        self._backbone = load_backbone(checkpoint, DTYPES[dtype], self.device)

    @classmethod
    def load(
        cls,
        model: str,
        revision: str | None = None,
        dtype: str = "bfloat16",
        device: str | None = None,
        token_budget: int | None = None,
        share_prompts: bool = True,
        fixed_packs: bool = False,
    ) -> "RewardModel":
        """Load a checkpoint onto one device.

        Args:
            model: a directory with config.json, *.safetensors and tokenizer, or a hub id.
            revision: branch, tag or commit of a hub id.
            dtype: of the backbone, "bfloat16", "float16" or "float32"; heads are always float32.
            device: as torch names it; by default CUDA where there is one.
            token_budget: most tokens in a forward pass; by default 16,384 on CUDA, 1,024 on a CPU.
            share_prompts: compute common prefixes and equal conversations once (exact).
            fixed_packs: pad every forward pass to token_budget, so that its matrix products have one shape:
                the same groups give the same bits in any order, and without share_prompts in any company.

        Raises:
            ConfigError: files missing or damaged, head tensors missing, unexpected or of a wrong shape,
                backbone tensors that do not match the config, a chat template that cannot be scored.
        """
        return cls(inspect(model, revision), dtype, device, token_budget, share_prompts, fixed_packs)

    def score(self, groups: Iterable[Group]) -> Scores:
        """Score prompt groups.

        Args:
            groups: pairs of prompt ids and the ids of each candidate, which continue the prompt. Rendered
                as the chat template does: one BOS first, the answer's header last in the prompt, the end
                of turn last in each candidate.

        Returns:
            Scores, C = the number of candidates of all groups; C may be 0.

        Raises:
            ValueError: an empty candidate, or one without the end of a user turn before an answer.
        """
        sequences = [
            np.concatenate((np.asarray(prompt, np.int32), np.asarray(candidate, np.int32)))
            for prompt, candidates in groups
            for candidate in candidates
        ]
        gates = [self._gate(i, ids) for i, ids in enumerate(sequences)]
        packs = make_packs(sequences, gates, self.token_budget, self.share_prompts, self.fixed_packs)
        order: list[npt.NDArray[np.int64]] = []
        outputs: list[HeadOutput] = []
        computed, seconds = 0, 0.0
        for pack in packs:  # nothing here waits for the device: the next pack is built while this one runs
            started = time.perf_counter()
            order.append(pack.sequences)
            outputs.append(self._forward(pack))
            computed += len(pack.input_ids)
            seconds += time.perf_counter() - started
        started = time.perf_counter()
        score, rewards, gating = self._collect(order, outputs)
        seconds += time.perf_counter() - started
        return Scores(score, rewards, gating, sum(map(len, sequences)), computed, len(outputs), seconds)

    def _gate(self, i: int, ids: Ids) -> int:
        gate = find_gate(ids, self._pattern)
        if gate < 0:
            raise ValueError(
                f"candidate {i}: no end of a user turn followed by an answer ({self._pattern.tolist()}) in its "
                f"{len(ids)} tokens"
            )
        return gate

    @torch.inference_mode()
    def _forward(self, pack: Pack) -> HeadOutput:
        hidden = self._backbone(
            input_ids=attention.to_device(pack.input_ids, self.device)[None],
            position_ids=attention.to_device(pack.position_ids, self.device)[None],
            use_cache=False,
            plan=attention.Plan.of(pack, self.device),
        ).last_hidden_state[0]
        # each position once: equal candidates get equal bits, and a prompt one gate
        last, last_of = np.unique(pack.last_index, return_inverse=True)
        gate, gate_of = np.unique(pack.gate_index, return_inverse=True)
        at = [attention.to_device(index, self.device) for index in (last, gate, last_of, gate_of)]
        return self._head(hidden[at[0]], hidden[at[1]], at[2], at[3])

    def _collect(
        self, order: list[npt.NDArray[np.int64]], outputs: list[HeadOutput]
    ) -> tuple[Floats, Floats, Floats]:
        """The outputs of all packs, fetched at once and put back into the caller's order."""
        if not outputs:
            empty = np.empty((0, len(self.reward_names)), np.float32)
            return np.empty(0, np.float32), empty, empty
        inverse = np.argsort(np.concatenate(order))
        score, rewards, gating = (
            torch.cat(parts).cpu().numpy()[inverse] for parts in zip(*outputs, strict=True)
        )
        return score, rewards, gating
