"""How many replicas of the model a run has, of what, and whether the cluster has room for them."""

import gc
import logging
import os
import time
from typing import Any, NamedTuple

import ray

from armo_ray.config import ScoreConfig
from armo_ray.errors import ConfigError
from armo_ray.plan import Job
from armo_ray.stages import Isolated, Scorer
from armo_ray.storage.units import Span

logger = logging.getLogger(__name__)

# Less than a core each: a pool that held every CPU would leave none to read, and the job would stand still.
ACTOR_CPUS = 0.25
_LOOK_S = 5.0
_TELL_S = 30.0


class Pool(NamedTuple):
    """The replicas of a run."""

    gpus: float  # of each
    low: int
    high: int
    device: str  # of each, as torch names it

    @property
    def resources(self) -> dict[str, Any]:
        """What Ray reserves for each."""
        return {"num_gpus": self.gpus, "num_cpus": ACTOR_CPUS}


def pool_of(config: ScoreConfig) -> Pool:
    """The replicas asked for, by default one for each GPU of the cluster, or one on its CPUs.

    Raises ConfigError where this machine has too few GPUs, or a cluster still has after `--wait` minutes.
    """
    have = ray.cluster_resources().get("GPU", 0.0)
    gpus = config.gpus_per_replica if config.gpus_per_replica is not None else min(1.0, have)
    low, high = config.replicas or (max(1, int(have / gpus + 1e-6)) if gpus else 1,) * 2
    if gpus * low > have:
        _wait_for(gpus * low, f"{low} replicas of {gpus:g} GPUs", config.wait)
    if not gpus and config.dtype != "float32":
        logger.warning("%s on CPUs is slow and rounds; --dtype float32 is exact", config.dtype)
    logger.info("scoring on %s replicas, %g GPUs each", low if low == high else f"{low} to {high}", gpus)
    return Pool(gpus, low, high, config.device or ("cuda" if gpus else "cpu"))


def _wait_for(gpus: float, told: str, minutes: float) -> None:
    """Ask a cluster for GPUs, and wait until it has them."""
    if "RAY_ADDRESS" not in os.environ:
        have = ray.cluster_resources().get("GPU", 0.0)
        raise ConfigError(f"{told}: this machine has {have:g}; use --gpus-per-replica 0 to score on its CPUs")
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{"GPU": 1.0}] * -(-int(gpus) // 1))
    deadline, tell = time.monotonic() + 60 * minutes, 0.0
    while (have := ray.cluster_resources().get("GPU", 0.0)) < gpus:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"{told}: the cluster has {have:g} GPUs after {minutes:g} minutes; ask for less with --replicas "
                f"or --gpus-per-replica, or let it wait longer with --wait"
            )
        if time.monotonic() >= tell:
            logger.info("waiting for the GPUs of %s: the cluster has %g", told, have)
            tell = time.monotonic() + _TELL_S
        time.sleep(_LOOK_S)
    request_resources(bundles=[])


class Replica(Scorer):
    """A scorer that takes its share of a machine without GPUs."""

    def __init__(self, job: Job, pool: Pool) -> None:
        if pool.device == "cpu":
            import torch

            torch.set_num_threads(max(1, ((os.cpu_count() or 1) - 1) // pool.high))  # and one to read
        super().__init__(job, pool.device)
        gc.freeze()  # the modules and weights stay: collecting a unit's garbage need not visit them


class IsolatedReplica(Isolated):
    """A unit and a replica of its own."""

    def __init__(self, span: Span, job: Job, pool: Pool) -> None:
        super().__init__(span, job, Replica(job, pool))


def isolated(span: Span, job: Job, pool: Pool) -> Any:
    """An actor that does one unit alone."""
    actor: Any = ray.remote(max_restarts=0, **pool.resources)(IsolatedReplica)
    return actor.remote(span, job, pool)
