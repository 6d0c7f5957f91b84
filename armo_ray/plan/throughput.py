"""The speed of a replica: as commit records measured it, or as the options state it."""

import logging
import math
from collections.abc import Set
from typing import NamedTuple

import numpy as np

from armo_ray.errors import ConfigError
from armo_ray.plan.options import PlanOptions
from armo_ray.score.job import ModelJob
from armo_ray.storage import commits
from armo_ray.storage.records import RunFile
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)

_RECORDS = 1000  # read from an output: enough to know the spread between units
_NEEDED = ("identity.family", "identity.dtype", "config.model")
_FEW, _LEAST_SPREAD = 10, 0.1  # few units, close together in time, show too small a spread


class Throughput(NamedTuple):
    """Tokens that a replica computes per second, and the seconds it takes to load.

    `spread` is the standard deviation of the rate's logarithm between units, each weighted by its seconds; it is
    not divided by their number, because the units of one run share what another run may not: machine, neighbors,
    lengths. None if fewer than two units were measured.
    """

    computed_tokens_per_second: float
    spread: float | None
    load_seconds: float
    units: int
    source: str


def throughput(options: PlanOptions, job: ModelJob, committed: Set[str]) -> Throughput | None:
    """Throughput from the options, else from this output's commits, else None.

    Raises ConfigError if the options name a previous output that has none.
    """
    rate = stated_or_previous(options)
    if rate is None:
        return measured(Store(job.output), committed) if committed else None
    if options.previous is not None:
        store = Store(options.previous)
        _compare(store.uri, commits.read_run(store, _NEEDED), job)
    return rate


def stated_or_previous(options: PlanOptions) -> Throughput | None:
    """Throughput from the options; None if they neither state it nor name a previous output.

    Raises ConfigError if they name one that has none.
    """
    if options.computed_tokens_per_second is not None:
        return Throughput(options.computed_tokens_per_second, None, 0.0, 0, "as stated")
    if options.previous is None:
        return None
    store = Store(options.previous)
    with commits.reading(store, "previous "):
        run = commits.read_run(store)
        if "judge_fingerprint" in run.identity:
            raise ConfigError(
                f"previous {store.uri}: a judge behind an endpoint made it, whose speed is not that of a replica: give "
                f"an output of armo-ray score, or --computed-tokens-per-second"
            )
        rate = measured(store, commits.list_commits(store), run)
    if rate is None:
        raise ConfigError(
            f"previous {store.uri}: none of its units computed anything: give another, or --computed-tokens-per-second"
        )
    return rate


def _compare(uri: str, run: RunFile, job: ModelJob) -> None:
    identity, config = run.identity, run.config or {}
    if (identity["family"], identity["dtype"], config["model"]) != (job.family.name, job.dtype, job.model):
        logger.warning(
            "previous %s was scored with %s in %s, but this run uses %s in %s: its speed may differ",
            *(uri, config["model"], identity["dtype"], job.model, job.dtype),
        )


def measured(store: Store, units: Set[str], run: RunFile | None = None) -> Throughput | None:
    """Throughput as the commit records of up to a thousand units measured it; None if nothing was computed."""
    names = sorted(units)  # names are hashes, in no order of time or length
    records = commits.read_commits(store, names[:: -(-len(names) // _RECORDS) or 1], run=run)
    computed = [(record.computed_tokens, record.timing) for record in records if record.computed_tokens]
    measures = [(count, timing) for count, timing in computed if timing is not None]
    if not measures:
        return None
    tokens = np.array([count for count, _ in measures], np.float64)
    seconds = np.array([timing.replica_seconds for _, timing in measures])
    rate = tokens.sum() / seconds.sum()
    logs = np.log(tokens / seconds / rate)
    spread = math.sqrt(np.average((logs - np.average(logs, weights=seconds)) ** 2, weights=seconds))
    load = float(np.mean([timing.load_seconds for _, timing in measures]))
    if 1 < len(measures) < _FEW:
        spread = max(spread, _LEAST_SPREAD)
    return Throughput(float(rate), spread if len(measures) > 1 else None, load, len(measures), store.uri)
