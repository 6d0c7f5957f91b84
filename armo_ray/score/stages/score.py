"""The second step, on a replica of the model: turns token ids into scores."""

import time

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from armo_ray.outputs.hidden import as_float32
from armo_ray.outputs.schema import STEP_SCORES
from armo_ray.score.job import ModelJob
from armo_ray.score.stages.hidden import add_states
from armo_ray.score.stages.read import load_encoder, model_directory, reference_on_node
from armo_ray.score.stages.unit_block import MODEL_COLUMNS, Header, conversations, one, ragged
from armo_ray.text.conversations import candidates_of
from armo_ray.text.layouts import Layout

Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.int32]

_PROBE = Layout("rollouts", {"prompt": "prompt", "responses": "responses"})


class Scorer:
    """A replica of the model. The constructor loads the model and scores a probe."""

    def __init__(self, job: ModelJob, device: str) -> None:
        started = time.perf_counter()
        from armo_ray.engine import RewardModel

        self.model = RewardModel.load(
            str(model_directory(job)),
            dtype=job.dtype,
            device=device,
            token_budget=job.token_budget,
            fixed_packs=job.fixed_packs,
            compile=job.compile,
            family=job.family,
            reference=reference_on_node(job),
            keep_hidden=job.keep_hidden,
        )
        self.scores = job.scores if job.keep_hidden else None
        encoder = load_encoder(job)
        candidates = candidates_of({"prompt": "2+2?", "responses": ["4", "5"]}, _PROBE)
        probe = self.model.score(encoder.encode(candidates).sequences())
        states = np.empty(0) if probe.hidden is None else as_float32(probe.hidden)
        if not (np.isfinite(probe.score).all() and np.isfinite(states).all()):
            what = "hidden states that are not finite" if job.keep_hidden else probe.score
            raise RuntimeError(f"{job.model}: the model returns {what} for a probe: damaged weights")
        self.load_seconds = time.perf_counter() - started
        self.peak_flops = self.model.peak_flops(job.dtype)
        self.ended: float | None = None  # end of the previous unit, by time.perf_counter

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace a unit's token ids by `score` (C,), `rewards` and `gating` (both C * K, flattened row by row).

        If hidden states are kept, those are added that `add_states` describes.
        """
        started, header = time.perf_counter(), Header.of(table)
        header.began, header.load_seconds = time.time(), self.load_seconds
        scores = self.model.score(conversations(table))
        header.computed_tokens, header.num_packs = scores.computed_tokens, scores.num_packs
        header.packed_tokens, header.pack_capacity = scores.packed_tokens, scores.pack_capacity
        header.flops, header.peak_flops = scores.flops, self.peak_flops
        header.token_budget = self.model.options.token_budget
        header.seconds["wait"] = started - (self.ended or started)
        self.ended = time.perf_counter()
        header.seconds["pack"] = self.ended - started - scores.model_seconds
        header.seconds["model"] = scores.model_seconds
        contests = table["contests"].combine_chunks().flatten().to_numpy().reshape(-1, 2)
        if len(contests):
            rates = win_rates(scores.score, contests)
            scores = scores._replace(score=rates, rewards=rates[:, None])
        done = table.drop_columns([*MODEL_COLUMNS, "header"]).append_column("header", header.to_array())
        for name in ("score", "rewards", "gating"):
            done = done.append_column(name, one(pa.array(getattr(scores, name).ravel())))
        if self.scores is not None:
            done = add_states(done, scores.hidden, self.scores)
        return done.append_column(STEP_SCORES.name, ragged(list(scores.steps), np.float32))


def win_rates(first_wins: Floats, contests: Index) -> Floats:
    """The mean probability that each candidate is better than another candidate of its prompt, (C,).

    Args:
        first_wins: (N,) probability that the first candidate of each contest is better.
        contests: (N, 2) indices of the two candidates.
    """
    wins = np.bincount(contests.ravel(), np.stack((first_wins, 1 - first_wins), axis=1).ravel())
    return (wins / np.bincount(contests.ravel())).astype(np.float32)
