"""The reward model: token ids of conversations in; rewards, gates and scores out."""

import copy
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from armo_ray.engine.backbone import devices_of, load_backbone
from armo_ray.engine.batches import Batch, make_batches
from armo_ray.engine.decoder import hidden_rows, layer_devices
from armo_ray.engine.device import Stopwatch, free_bytes, is_out_of_memory, set_up_process, to_device
from armo_ray.engine.flops import flops, peak_flops, shape_of
from armo_ray.engine.heads import Head, HeadOutput
from armo_ray.engine.kernel_check import kernel_fault
from armo_ray.engine.llama import Llama
from armo_ray.engine.load_head import read_head
from armo_ray.engine.log_ratios import LogRatios
from armo_ray.engine.options import Options
from armo_ray.engine.packing import Ids, Index, Pack, make_packs
from armo_ray.engine.step_sums import accumulated
from armo_ray.model.chat import Chat
from armo_ray.model.checkpoint import inspect
from armo_ray.model.families import Family
from armo_ray.model.policy_pair import inspect_reference
from armo_ray.model.positions import check_keeps_hidden, without_ends
from armo_ray.model.reference import Reference, check_given
from armo_ray.model.steps import check_system

logger = logging.getLogger(__name__)

# Matrix products of an 8B model reach full speed at 16k rows on a GPU and at 150 on a CPU, where larger packs do not
# fit in the cache.
TOKEN_BUDGETS = {"cuda": 16_384, "cpu": 1_024}
PROBE_TOKENS = 1_024
MEMORY_SHARE = 0.8  # share of free memory for activations; the rest allows for fragmentation

TokenIds = Sequence[int] | npt.NDArray[np.integer[Any]]
Group = tuple[TokenIds, Sequence[TokenIds]]
Floats = npt.NDArray[np.float32]
States = npt.NDArray[Any]


class Scores(NamedTuple):
    """One row per candidate, in the order of the groups and of the candidates in them; all float32.

    With gates, `score[i] == sum(rewards[i] * (gating[i] @ transform.T))` up to rounding.
    """

    score: Floats  # (C,)
    rewards: Floats  # (C, K) in the order of RewardModel.reward_names; ArmoRM's are raw, before the transform
    gating: Floats  # (C, K); (C, 0) for a family without gates
    num_tokens: int  # tokens of all conversations, each counted in full
    computed_tokens: int  # tokens computed by the backbone after sharing, including padding
    num_packs: int
    model_seconds: float  # time on the device, from the start to the end of each forward pass
    steps: tuple[Floats, ...] = ()  # C arrays with a process model's reward for each step; otherwise empty
    packed_tokens: int = 0  # tokens computed by the backbone, without padding
    pack_capacity: int = 0  # tokens that the packs had room for
    flops: int = 0  # operations for the packed tokens
    # (C, R, H), with keep_hidden: the final hidden states of the R tokens that the head reads, in the backbone's own
    # dtype: float32, float16, or bfloat16 as uint16
    hidden: States | None = None


class Computed(NamedTuple):
    """What one forward pass computes for its C candidates."""

    head: HeadOutput
    hidden: torch.Tensor | None  # (C, R, H) if it is kept


class RewardModel:
    """A reward model on one device, or with its layers spread over several.

    >>> model = RewardModel.load("RLHFlow/ArmoRM-Llama3-8B-v0.1", dtype="bfloat16", device="cuda")
    >>> scores = model.score([(prompt_ids, [answer_ids, other_answer_ids])])
    """

    def __init__(
        self, backbone: nn.Module, head: Head, options: Options, log_ratios: LogRatios | None = None
    ) -> None:
        self.backbone: Any = backbone  # a Llama, or one of transformers' decoders
        self.head = head
        self.log_ratios = log_ratios  # of a policy and its reference model
        self.pattern = head.pattern
        self.reward_names = head.names
        self.options = options
        self.device = layer_devices(backbone)[-1]  # the head is where the last layer is
        self.shape = shape_of(backbone)

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
        compile: bool | None = None,  # noqa: A002
        family: str | Family | None = None,
        reference: Reference | None = None,
        keep_hidden: bool = False,
    ) -> "RewardModel":
        """Load a checkpoint, and switch off TF32 and other less exact products in this process.

        Args:
            model: a directory with config.json, *.safetensors and a tokenizer, or a hub id.
            revision: branch, tag or commit of a hub id.
            dtype: the backbone's, "bfloat16", "float16", "float32" or "fp8": linear layers in float8 e4m3
                scaled by row, everything else in bfloat16. Heads are always float32.
            device: a torch device; by default CUDA if available. Several devices, separated by commas, get an
                equal share of the layers; for Llama, Mistral, Qwen2 and Qwen3 only.
            token_budget: maximum number of tokens in a forward pass; by default 1,024 on a CPU, and on CUDA
                16,384 or what fits in free memory.
            share_prompts: compute common prefixes and equal conversations once (exact); an encoder cannot.
            fixed_packs: pad every forward pass to token_budget, or for an encoder to one of a few shapes by length, so
                that matrix products have a fixed shape. The same groups then give the same bits in any order and,
                without share_prompts, together with any other groups.
            compile: torch.compile the functions around attention; the first pass then takes up to a minute. By
                default for fp8 on CUDA only, which is slower than bfloat16 without it.
            family: a name in armo_ray.model.families, a TOML file, or a `Family`; by default
                identified by the checkpoint's tensors.
            reference: for the families "dpo" and "prm-eurus", the model to compare with. It takes memory beside the
                policy.
            keep_hidden: return the hidden states that the head reads, too. A family that reads the states of steps, of
                two responses or of two models has none to return.

        Raises:
            ConfigError: files are missing or damaged; head tensors are missing, unexpected or of a wrong shape;
                backbone tensors do not match the config; the chat template cannot be used for scoring; or the
                device's attention kernel gives wrong results.
        """
        devices = devices_of(dtype, device)
        set_up_process(devices[-1])
        checkpoint = inspect(model, revision, family)
        check_given(checkpoint.family, reference, dtype)
        if keep_hidden:
            check_keeps_hidden(checkpoint.family)
        if compile is None:
            compile = dtype == "fp8" and devices[-1].type == "cuda"  # noqa: A001
        budget = token_budget or TOKEN_BUDGETS.get(devices[-1].type, 8_192)
        chat = Chat.load(checkpoint.path, checkpoint.family)
        if family is None:
            check_system(chat)
        other = reference and inspect_reference(checkpoint, reference.model, reference.revision)
        backbone = load_backbone(checkpoint, dtype, devices)
        head = read_head(checkpoint, chat, devices[-1], reference)
        log_ratios = LogRatios.load(checkpoint, other, dtype, devices) if other else None
        kernel = checkpoint.family.bidirectional or all(
            _kernel_works(one) for one in (backbone, *([log_ratios.backbone] if log_ratios else []))
        )
        # nearly all rows are read of a policy: the last layer is then faster for all tokens than row by row
        options = Options(
            budget, share_prompts, fixed_packs, log_ratios is None, compile, kernel, keep_hidden
        )
        loaded = cls(backbone, head, options, log_ratios)
        if loaded.device.type == "cuda" and token_budget is None:
            loaded._fit_budget()
        return loaded

    def with_options(self, **changes: Any) -> "RewardModel":
        """A model with the same weights and other Options."""
        other = copy.copy(self)
        other.options = replace(self.options, **changes)
        return other

    def score(self, groups: Iterable[Group]) -> Scores:
        """Score prompt groups.

        Args:
            groups: pairs of the prompt's ids and a list with each candidate's ids, which continue the prompt, as
                the chat template renders them: the prompt begins with BOS and ends with the response's header,
                and each candidate ends with the end of its turn. Marks of steps count in candidates only. An id of
                -1 is no token: for a family that sums over the tokens of steps, it follows the last one of a step.

        Returns:
            Scores for the C candidates of all groups; C may be 0.

        Raises:
            ValueError: a candidate lacks the tokens that the head reads, such as the end of a user turn.
            RuntimeError: a single conversation does not fit in memory.
        """
        sequences, reads, ends = self._sequences(groups)
        order: list[Index] = []
        outputs: list[Computed] = []
        watch = Stopwatch(self.device)
        computed = packed = capacity = operations = 0
        left = np.arange(len(sequences))
        while len(left):
            for pack in self._packs(
                left, sequences, reads
            ):  # built while the device computes the previous pack
                watch.mark()
                output = self._forward(pack)
                watch.mark()
                if output is None:
                    break  # out of memory: the rest goes into smaller packs
                order.append(left[pack.sequences])
                outputs.append(output)
                computed += len(pack.input_ids)
                packed += pack.num_tokens
                capacity += max(self.options.token_budget, len(pack.input_ids))
                operations += self._flops(pack)
            left = np.setdiff1d(left, np.concatenate([left[:0], *order]))
        (score, rewards, gating, steps), hidden = self._collect(order, outputs, reads)
        if steps and any(ends):
            score, rewards, steps = accumulated(steps, ends)
        total = sum(map(len, sequences))
        work = (packed, capacity, operations)
        return Scores(
            score,
            rewards,
            gating,
            total,
            computed,
            len(outputs),
            watch.seconds(),
            steps,
            *work,
            hidden=hidden,
        )

    def peak_flops(self, dtype: str) -> float | None:
        """Peak operations per second of the model's devices for a dtype; None if not known."""
        return peak_flops(set(layer_devices(self.backbone)), dtype)

    def _sequences(self, groups: Iterable[Group]) -> tuple[list[Ids], list[list[int]], list[list[int]]]:
        """The token ids of each candidate after its prompt, the positions in them that the head reads, and the number
        of these positions up to the end of each step, if ends are marked.
        """
        sequences: list[Ids] = []
        reads: list[list[int]] = []
        ends: list[list[int]] = []
        for prompt, candidates in groups:
            before = np.asarray(prompt, np.int32)
            for candidate in candidates:
                marked = np.concatenate((before, np.asarray(candidate, np.int32)))
                ids, counts = without_ends(marked, len(before))
                read = self._read(len(reads), ids, len(before), counts)
                sequences.append(ids)
                reads.append(read[: counts[-1]] if counts else read)
                ends.append(counts)
        return sequences, reads, ends

    def _read(self, i: int, ids: Ids, start: int, ends: list[int]) -> list[int]:
        positions = self.head.positions(ids, start)
        family = self.head.family
        sums = family.by_step and family.reads == "response"
        if sums != bool(ends) or (sums and not 0 < ends[0] <= ends[-1] <= len(positions)):
            raise ValueError(
                f"candidate {i}: {len(ends)} ends of steps after {ends[:5]} of its {len(positions)} tokens"
            )
        if not positions:
            raise ValueError(
                f"candidate {i}: no end of a user turn followed by an answer ({self.pattern.tolist()}) in its "
                f"{len(ids)} tokens"
            )
        return positions

    def _packs(
        self, chosen: Index, sequences: Sequence[Ids], reads: Sequence[list[int]]
    ) -> Iterator[Pack] | Iterator[Batch]:
        o = self.options
        ids, read = [sequences[i] for i in chosen], [reads[i] for i in chosen]
        if self.head.family.bidirectional:
            return make_batches(ids, read, o.token_budget, o.fixed_packs)
        return make_packs(ids, read, o.token_budget, o.share_prompts, o.fixed_packs)

    def _flops(self, pack: Pack | Batch) -> int:
        if isinstance(pack, Batch):  # a token attends to its whole conversation
            return flops(self.shape, np.repeat(pack.lengths - 1, pack.lengths))
        few = self.options.needed_rows and isinstance(self.backbone, Llama)
        needed = pack.position_ids[np.unique(pack.read_index)] if few else None
        beside = self.log_ratios.flops(pack) if self.log_ratios else 0
        return flops(self.shape, pack.position_ids[: pack.num_tokens], needed) + beside

    def _forward(self, pack: Pack | Batch) -> Computed | None:
        """The scores of a pack. If memory runs out, halves the token budget and returns None."""
        try:
            return self._outputs(pack)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            tokens, budget = len(pack.input_ids), self.options.token_budget
            if tokens > budget or tokens == 1:  # a smaller budget would not make the pack smaller
                raise RuntimeError(
                    f"{tokens} tokens of one conversation do not fit in memory: {error}"
                ) from error
        self.options = replace(self.options, token_budget=budget // 2)
        logger.warning("out of memory at %d tokens: token budget %d -> %d", tokens, budget, budget // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    @torch.inference_mode()
    def _outputs(self, pack: Pack | Batch) -> Computed:
        # each position once, so that equal candidates get equal bits and a prompt has one gate
        rows = np.unique(pack.read_index)
        hidden = hidden_rows(self.backbone, pack, rows, self.options)
        places = (np.searchsorted(rows, pack.read_index), np.diff(pack.cu_read))
        index, lengths = (to_device(x, self.device) for x in places)
        if self.log_ratios and isinstance(pack, Pack):  # an encoder has none
            hidden = self.log_ratios.of_tokens(pack, rows, hidden, index, self.options)[:, None]
            index = torch.arange(len(hidden), device=self.device)
        kept = (
            hidden.index_select(0, index).unflatten(0, (len(lengths), -1))
            if self.options.keep_hidden
            else None
        )
        return Computed(self.head.compute(hidden, index, lengths), kept)

    def _fit_budget(self) -> None:
        """Halve the token budget until it fits in free memory, extrapolating from a small pass."""
        encoder = self.head.family.bidirectional
        longest = int(self.backbone.config.max_position_embeddings) if encoder else PROBE_TOKENS
        ids = np.ones(min(longest, PROBE_TOKENS), np.int32)
        ids[: len(self.pattern)] = self.pattern
        count = PROBE_TOKENS // len(ids)
        probing = self.with_options(token_budget=PROBE_TOKENS, fixed_packs=False)
        (probe,) = probing._packs(np.arange(count), [ids] * count, [self.head.positions(ids)] * count)
        self._outputs(probe)  # the first pass allocates workspaces, which do not grow with tokens
        devices = [device for device in set(layer_devices(self.backbone)) if device.type == "cuda"]
        before = [torch.cuda.memory_allocated(device) for device in devices]
        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)
        self._outputs(probe)
        limit = math.inf
        for device, allocated in zip(devices, before, strict=True):
            by_token = (torch.cuda.max_memory_allocated(device) - allocated) / PROBE_TOKENS
            limit = min(limit, MEMORY_SHARE * free_bytes(device) / by_token)
        budget = self.options.token_budget
        while budget > max(limit, PROBE_TOKENS):
            budget //= 2
        self.options = replace(self.options, token_budget=budget)
        logger.info("token budget %d: free memory suffices for %.0f tokens", budget, limit)

    def _collect(
        self, order: list[Index], outputs: list[Computed], reads: Sequence[list[int]]
    ) -> tuple[tuple[Floats, Floats, Floats, tuple[Floats, ...]], States | None]:
        """The outputs of all packs, fetched from the device at once and in the caller's order; last the states."""
        if not outputs:
            empty = np.empty((0, len(self.reward_names)), np.float32)
            return (np.empty(0, np.float32), empty, empty, ()), None
        places = np.concatenate(order)
        inverse = np.argsort(places)
        score, rewards, gating, flat = (
            torch.cat(tensors).cpu().numpy() for tensors in zip(*(o.head for o in outputs), strict=True)
        )
        kept = [output.hidden for output in outputs if output.hidden is not None]
        steps: tuple[Floats, ...] = ()
        if flat.size:
            by_candidate = np.split(flat, np.cumsum([len(reads[i]) for i in places])[:-1])
            steps = tuple(by_candidate[i] for i in inverse)
        hidden = _to_numpy(torch.cat(kept))[inverse] if kept else None
        return (score[inverse], rewards[inverse], gating[inverse], steps), hidden


def _to_numpy(states: torch.Tensor) -> States:
    """A tensor as an array of its own dtype; bfloat16, which numpy lacks, as uint16."""
    if states.dtype == torch.bfloat16:
        return states.view(torch.int16).cpu().numpy().view(np.uint16)
    return states.cpu().numpy()


def _kernel_works(backbone: nn.Module) -> bool:
    """Whether the attention kernel can be used; logs why not. Raises ConfigError if it gives wrong results."""
    faults = [kernel_fault(backbone, device) for device in dict.fromkeys(layer_devices(backbone))]
    for fault in filter(None, faults):
        logger.warning("attention is computed segment by segment, which is slower: %s", fault)
    return not any(faults)
