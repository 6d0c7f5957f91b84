"""armo-ray plan: what a run would do and cost, as numbers with 95 % intervals. Nothing is written."""

import time
from collections.abc import Sequence
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.outputs.schema import REJECT_REASONS
from armo_ray.plan.cost import cost, gpus_of, token_budget
from armo_ray.plan.describe import describe_input, describe_sample, duplicates, lengths, mean_context
from armo_ray.plan.intervals import ratio, share
from armo_ray.plan.options import PlanOptions
from armo_ray.plan.preview import preview
from armo_ray.plan.projected import as_stated, estimated_speed, estimated_speeds, flops_per_token, like_sample
from armo_ray.plan.remaining import Work, work
from armo_ray.plan.sample import measured_to, take
from armo_ray.plan.throughput import Throughput, stated_or_previous, throughput
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
    if config.only_where is not None:
        raise ConfigError(
            "only-where: plan counts whole inputs; leave it out, or use armo-ray judge --dry-run"
        )
    started = time.monotonic()
    job, spans = prepare(config, write=False)
    store = Store(job.output)
    standing = resume.standing(store, spans, job.fingerprint, config.redo, config.forget)
    left, committed = standing.left, standing.committed
    if options.rows is not None:
        left = spans
    trial = None if committed or standing.dropped else try_out(job, spans)
    sample = take(left, job, options.sample, token_budget(config))
    if options.rows is None:
        todo = work(left, sample, job, store)
    else:
        todo = like_sample(sample.strata, options.rows, job.unit_rows)
    context = mean_context(*sample.lengths)
    rate = _estimated(config, options, context) or throughput(options, job, committed)
    return {
        "model": {"path": job.model, "revision": job.revision, "family": job.family.name, "dtype": job.dtype}
        | ({"reference_model": job.reference.model} if job.reference else {}),
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
        **_time(config, options, todo, rate, context),
    }


def estimate_stated(config: ScoreConfig, options: PlanOptions) -> dict[str, Any]:
    """The time and cost of --rows of --tokens-per-row each, by name; needs no input. Raises ConfigError."""
    rows, tokens = options.rows or 0, options.tokens_per_row or 0.0
    context = tokens / 2
    rate = _estimated(config, options, context) or stated_or_previous(options)
    todo = as_stated(rows, tokens, config.unit_rows)
    return {
        "model": {"path": config.model, "revision": config.revision, "dtype": config.dtype},
        "to_do": todo._asdict(),
        **_time(config, options, todo, rate, context),
    }


def _estimated(config: ScoreConfig, options: PlanOptions, context: float) -> Throughput | None:
    return estimated_speed(config, options.gpu, flops_per_token(config, context)) if options.gpu else None


def _time(
    config: ScoreConfig, options: PlanOptions, todo: Work, rate: Throughput | None, context: float
) -> dict[str, Any]:
    """Speed and cost; where no speed is known, an estimate for each GPU."""
    speeds = estimated_speeds(config, context) if rate is None and gpus_of(config) else {}
    return {
        "throughput": rate and rate._asdict(),
        "cost": cost(config, todo, rate, options.price),
        "gpu_estimates": {
            gpu: {
                "computed_tokens_per_second": speed.computed_tokens_per_second,
                "cost": cost(config, todo, speed, None),
            }
            for gpu, speed in speeds.items()
        },
    }


def _committed(spans: Sequence[Span], committed: frozenset[str]) -> set[str]:
    """The committed units that belong to these spans."""
    shards = {span.shard.hash for span in spans}
    return {unit for unit in committed if unit[:16] in shards}
