"""armo-ray plan: what a run would do and cost, as numbers with 95 % intervals. Nothing is written."""

import time
from collections.abc import Sequence
from typing import Any

from armo_ray.outputs.schema import REJECT_REASONS
from armo_ray.plan.cost import cost, token_budget
from armo_ray.plan.describe import describe_input, describe_sample, duplicates, lengths
from armo_ray.plan.intervals import ratio, share
from armo_ray.plan.options import PlanOptions
from armo_ray.plan.preview import preview
from armo_ray.plan.remaining import work
from armo_ray.plan.sample import measured_to, take
from armo_ray.plan.throughput import throughput
from armo_ray.score.config import ScoreConfig
from armo_ray.score.job import prepare
from armo_ray.score.trial import refusal
from armo_ray.score.trial import take as try_out
from armo_ray.storage import resume
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span


def estimate(config: ScoreConfig, options: PlanOptions) -> dict[str, Any]:
    """What `armo-ray score` would do with this configuration, by name; a Figure is [value, low, high].

    Raises ConfigError if the run itself would be refused.
    """
    started = time.monotonic()
    job, spans = prepare(config, write=False)
    store = Store(job.output)
    standing = resume.standing(store, spans, job.fingerprint, config.redo, config.forget)
    left, committed = standing.left, standing.committed
    rate = throughput(options, job, committed)
    trial = None if committed or standing.dropped else try_out(job, spans)
    sample = take(left, job, options.sample, token_budget(config))
    todo = work(left, sample, job, store)
    return {
        "model": {"path": job.model, "revision": job.revision, "family": job.family.name, "dtype": job.dtype},
        "max_length": job.max_length,
        "truncate": job.truncate,
        "output": store.uri,
        "input": describe_input(spans),
        "layout": {
            "name": job.layout.name or job.layout.kind,
            "read": dict(job.layout.columns),
            "unread": list(job.unread),
        },
        "committed": {"units": len(_committed(spans, committed)), "units_of_output": len(committed)},
        "to_do": {"shards": len(left), **todo._asdict()},
        "sample": describe_sample(sample) | {"seconds": round(time.monotonic() - started, 3)},
        "rejects": {
            name: share(sample.strata, name, "candidates") for name in (*REJECT_REASONS, "truncated")
        },
        "refused": trial and refusal(trial, config),
        "preview": preview(job, spans, options.show) if options.show else None,
        "deduplication_ratio": ratio(sample.strata, "tokens", "computed"),
        "prompts": duplicates(sample, todo.rows.value),
        "lengths": lengths(*sample.lengths, job.max_length, measured_to(job)),
        "throughput": rate and rate._asdict(),
        "cost": cost(config, todo, rate, options.price),
    }


def _committed(spans: Sequence[Span], committed: frozenset[str]) -> set[str]:
    """The committed units that belong to these spans."""
    shards = {span.shard.hash for span in spans}
    return {unit for unit in committed if unit[:16] in shards}
