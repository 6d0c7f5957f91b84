"""Token ids become scores: the second step, on a replica of the model."""

import time

import numpy as np
import pyarrow as pa

from armo_ray.plan import Job
from armo_ray.stages.read import load_encoder
from armo_ray.stages.unit_table import MODEL_COLUMNS, Header, arrays, one


class Scorer:
    """A replica of the model, loaded and tried out when it is made."""

    def __init__(self, job: Job, device: str) -> None:
        from armo_ray.engine import RewardModel

        self.model = RewardModel.load(
            job.model,
            job.revision,
            dtype=job.dtype,
            device=device,
            token_budget=job.token_budget,
            fixed_packs=job.fixed_packs,
        )
        encoder = load_encoder(job)
        probe = self.model.score([encoder.group([{"role": "user", "content": "2+2?"}], ["4"])])
        if not np.isfinite(probe.score).all():
            raise RuntimeError(f"{job.model}: the model returns {probe.score} for a probe: damaged weights")

    def __call__(self, table: pa.Table) -> pa.Table:
        """The unit with `score` (C), `rewards` and `gating` (C * K, row by row) for its token ids."""
        started = time.perf_counter()
        header = Header.of(table)
        prompts, responses = arrays(table["prompts"]), arrays(table["responses"])
        group = table["group"].combine_chunks().flatten().to_numpy()
        found = self.model.score(
            (prompts[g], [response]) for g, response in zip(group, responses, strict=True)
        )
        header.computed_tokens, header.num_packs = found.computed_tokens, found.num_packs
        header.seconds["model"] = found.model_seconds
        header.seconds["pack"] = time.perf_counter() - started - found.model_seconds
        done = table.drop_columns([*MODEL_COLUMNS, "header"]).append_column("header", header.to_array())
        for name in ("score", "rewards", "gating"):
            done = done.append_column(name, one(pa.array(getattr(found, name).ravel())))
        return done
