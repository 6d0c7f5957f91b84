"""Reads a sample of what is left to do exactly as a run would: the same rows, tokens, rejects and packs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from armo_ray.engine.packing import Ids, make_packs
from armo_ray.model.positions import without_ends
from armo_ray.outputs.schema import REJECT_REASONS
from armo_ray.plan.intervals import Counted
from armo_ray.plan.sample_runs import Run, draw, read_blocks
from armo_ray.score.job import ModelJob
from armo_ray.score.stages.read import load_encoder, row_candidates
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.units import Span
from armo_ray.text.conversations import Candidate
from armo_ray.text.tokenization import Encoder

_LONGEST = 16  # times max_length: longer conversations are not measured

COUNTS = ("rows", "candidates", "conversations", "tokens", "computed", "truncated", *REJECT_REASONS)


@dataclass(frozen=True)
class Measured:
    """A run of rows: sums by the names in COUNTS, the tokens of its conversations, and the rows with each prompt."""

    size: float
    exact: bool
    counts: Counter[str]
    lengths: list[int]
    prompts: Counter[str]


@dataclass(frozen=True)
class Sample:
    """The runs that were read, by stratum."""

    strata: list[Counted]
    runs: list[list[Measured]]

    @property
    def exact(self) -> bool:
        """Whether footers give the candidates of all rows."""
        return all(run.exact for runs in self.runs for run in runs)

    @property
    def lengths(self) -> tuple[list[int], list[float]]:
        """The tokens of the sampled conversations, and how many conversations each stands for."""
        lengths, weights = [], []
        for stratum, runs in zip(self.strata, self.runs, strict=True):
            for run in runs:
                lengths += run.lengths
                weights += [stratum.scale] * len(run.lengths)
        return lengths, weights


def measured_to(job: ModelJob) -> int:
    """The largest length that is measured, in tokens; longer conversations count as this long.

    For responses that are compared with others, the length of one that fits into no comparison is not known.
    """
    return job.max_length + 1 if job.family.text == "pairs" else _LONGEST * job.max_length


def take(spans: Sequence[Span], job: ModelJob, places: int, token_budget: int) -> Sample:
    """Read the spans in about this many places."""
    reader = _Reader(job, token_budget)
    strata, measured = [], []
    for stratum in draw(spans, places):
        runs = in_parallel(reader.measure, read_blocks(stratum.drawn, job.columns))
        sizes = np.array([run.size for run in runs], np.float64)
        counts = {name: np.array([run.counts[name] for run in runs], np.float64) for name in COUNTS}
        counts["size"] = sizes
        strata.append(Counted(stratum.kind, stratum.total, stratum.complete, sizes, counts))
        measured.append(runs)
    return Sample(strata, measured)


class _Reader:
    """Rows as one job reads them."""

    def __init__(self, job: ModelJob, token_budget: int) -> None:
        self.job, self.token_budget, self.encoder = job, token_budget, load_encoder(job)

    @cached_property
    def unbounded(self) -> Encoder:
        """Encodes conversations that are too long, to measure them."""
        special = "plain" if self.encoder.plain else "reference"
        return Encoder(self.encoder.chat, measured_to(self.job), "none", special)

    def measure(self, run: Run) -> Measured:
        candidates: list[Candidate] = []
        numbers: list[int] = []
        for number, row in enumerate(run.rows):
            candidates += row_candidates(row, self.job)
            numbers += [number] * (len(candidates) - len(numbers))
        done = self.encoder.encode(candidates)
        sequences = [without_ends(np.concatenate((prompt, *ids)))[0] for prompt, ids in done.sequences()]
        lengths = [len(ids) for ids in sequences]
        cut = [j for j, flags in enumerate(done.flags) if "truncated" in flags]
        longer = [i for i, reason, _ in done.rejects if reason == "too_long"]
        if cut or longer:
            measured = self._lengths([candidates[i] for i in (*(done.source[j] for j in cut), *longer)])
            lengths = [n for j, n in enumerate(lengths) if j not in cut] + measured
        counts = Counter(reason for _, reason, _ in done.rejects)
        counts |= Counter(
            rows=len(run.rows),
            candidates=len(candidates),
            conversations=len(sequences),
            tokens=sum(map(len, sequences)),
            computed=self._computed(sequences),
            truncated=len(cut),
        )
        seen = {(numbers[i], prompt) for i, prompt in zip(done.source, done.prompt_id, strict=True)}
        return Measured(run.size, run.exact, counts, lengths, Counter(prompt for _, prompt in seen))

    def _computed(self, sequences: list[Ids]) -> int:
        """The tokens to compute. Those of an encoder share nothing, and full batches hardly need padding."""
        if self.job.family.bidirectional:
            return sum(map(len, sequences))
        packs = make_packs(sequences, [[len(ids) - 1] for ids in sequences], self.token_budget)
        return sum(len(pack.input_ids) for pack in packs)

    def _lengths(self, candidates: list[Candidate]) -> list[int]:
        """The tokens of conversations that are too long; for the very longest, a lower bound."""
        if self.job.family.text == "pairs":
            return [measured_to(self.job)] * len(candidates)
        encoded = self.unbounded.encode(candidates)
        beyond = [self.unbounded.max_length] * len(encoded.rejects)
        own = [len(prompt) + len(without_ends(ids)[0]) for prompt, (ids,) in encoded.sequences()]
        return own + beyond
