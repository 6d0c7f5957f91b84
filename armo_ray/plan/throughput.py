"""How fast a replica is: as commit records measured it, or as somebody says."""

import logging
import math
from collections.abc import Mapping, Set
from typing import Any, NamedTuple

import numpy as np

from armo_ray.errors import ConfigError
from armo_ray.plan.options import PlanOptions
from armo_ray.score.job import Job
from armo_ray.storage import commits
from armo_ray.storage.retries import explain
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)

_RECORDS = 1000  # read of an output: its spread between units is known well enough by then
_NEEDED = ("identity.family", "identity.dtype", "config.model")
_FEW, _LEAST_SPREAD = 10, 0.1  # of so few units, from one stretch of time, little can be told


class Throughput(NamedTuple):
    """Tokens that a replica computes in a second, and seconds that it takes to load.

    `spread` is the standard deviation of the rate's logarithm between units, each weighed by its seconds; it is
    not divided by their number, since the units of one run share what another may not: machine, neighbours,
    lengths. None where nothing was measured twice.
    """

    computed_tokens_per_second: float
    spread: float | None
    load_seconds: float
    units: int
    source: str


def throughput(options: PlanOptions, job: Job, committed: Set[str]) -> Throughput | None:
    """By the options; None where neither they nor the output tell. Raises ConfigError where a previous one does not."""
    if options.computed_tokens_per_second is not None:
        return Throughput(options.computed_tokens_per_second, None, 0.0, 0, "as stated")
    if options.previous is None:
        return measured(Store(job.output), committed) if committed else None
    store = Store(options.previous)
    try:
        run = commits.read_run(store)
        found = measured(store, commits.list_commits(store), run)
    except OSError as error:
        raise ConfigError(f"previous {store.uri}: cannot be read: {explain(error)}") from error
    if found is None:
        raise ConfigError(
            f"previous {store.uri}: no unit of it has computed anything: give another, or --computed-tokens-per-second"
        )
    _compare(store.uri, commits.read_run(store, _NEEDED), job)
    return found


def _compare(uri: str, run: Mapping[str, Any], job: Job) -> None:
    identity, config = run["identity"], run["config"]
    if (identity["family"], identity["dtype"], config["model"]) != (job.family.name, job.dtype, job.model):
        logger.warning(
            "previous %s is of %s in %s, this run of %s in %s: is one as fast as the other?",
            *(uri, config["model"], identity["dtype"], job.model, job.dtype),
        )


def measured(store: Store, units: Set[str], run: Mapping[str, Any] | None = None) -> Throughput | None:
    """What the commit records of some units tell, a thousand of them at most; None where nothing was computed."""
    names = sorted(units)  # by hashes: in no order of time or length
    records = commits.read_commits(store, names[:: -(-len(names) // _RECORDS) or 1], run=run)
    records = [record for record in records if record["computed_tokens"] and "seconds" in record]
    if not records:
        return None
    tokens = np.array([record["computed_tokens"] for record in records], np.float64)
    seconds = np.array([commits.replica_seconds(record) for record in records])
    rate = tokens.sum() / seconds.sum()
    logs = np.log(tokens / seconds / rate)
    spread = math.sqrt(np.average((logs - np.average(logs, weights=seconds)) ** 2, weights=seconds))
    load = float(np.mean([record["load_seconds"] for record in records]))
    if 1 < len(records) < _FEW:
        spread = max(spread, _LEAST_SPREAD)
    return Throughput(float(rate), spread if len(records) > 1 else None, load, len(records), store.uri)
