"""The replicas of the model in a run: their number and resources, and whether the cluster has room for them."""

import gc
import logging
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import ray

from armo_ray.errors import ConfigError
from armo_ray.score.config import ScoreConfig
from armo_ray.score.job import Job
from armo_ray.score.stages import Isolated, Scorer
from armo_ray.storage.units import Span

logger = logging.getLogger(__name__)

# Less than a core each: a pool that reserved every CPU would leave none for reading, and the job would hang.
ACTOR_CPUS = 0.25
_LOOK_S = 5.0
_LOG_EVERY_S = 30.0


class Pool(NamedTuple):
    """The replicas of a run."""

    gpus: float  # of each
    low: int
    high: int
    device: str  # of each, in torch's notation; the layers are split over several, separated by commas

    @property
    def resources(self) -> dict[str, Any]:
        """The resources that Ray reserves for each replica."""
        return {"num_gpus": self.gpus, "num_cpus": ACTOR_CPUS}


def pool_of(config: ScoreConfig) -> Pool:
    """The configured replicas, by default one for each GPU of the cluster, or one on its CPUs.

    Raises ConfigError if this machine has too few GPUs, or if a cluster still has too few after `--wait` minutes.
    """
    nodes = _gpus_of_nodes()
    gpus = config.gpus_per_replica if config.gpus_per_replica is not None else min(1.0, sum(nodes))
    room = room_for(gpus, nodes) if gpus else 1
    low, high = config.replicas or (max(1, room),) * 2
    if gpus and room < low:
        _wait_for(low, gpus, config.wait)
    if not gpus and config.dtype != "float32":
        logger.warning("%s is slow and inexact on CPUs; --dtype float32 is exact", config.dtype)
    count = "1 replica" if high == 1 else f"{high} replicas" if low == high else f"{low} to {high} replicas"
    logger.info("scoring on %s, %g GPUs each", count, gpus)
    device = ",".join(f"cuda:{i}" for i in range(max(1, int(gpus)))) if gpus else "cpu"
    return Pool(gpus, low, high, config.device or device)


def room_for(gpus: float, nodes: Sequence[float]) -> int:
    """How many replicas of `gpus` GPUs fit. `nodes`: the GPUs of each; a replica uses one node, a fraction one GPU."""
    if gpus < 1:
        return int(sum(nodes)) * int(1 / gpus + 1e-6)
    return sum(int(have // gpus) for have in nodes)


def _gpus_of_nodes() -> list[float]:
    return [node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]]


def _wait_for(replicas: int, gpus: float, minutes: float) -> None:
    """Request the GPUs of the replicas from the cluster, and wait until it has them."""
    demand = f"{replicas} replicas of {gpus:g} GPUs"
    if "RAY_ADDRESS" not in os.environ:
        have = sum(_gpus_of_nodes())
        raise ConfigError(
            f"{demand}: this machine has {have:g}; use --gpus-per-replica 0 to score on its CPUs"
        )
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{"GPU": gpus}] * replicas)
    deadline, next_log = time.monotonic() + 60 * minutes, 0.0
    try:
        while room_for(gpus, nodes := _gpus_of_nodes()) < replicas:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{demand}: after {minutes:g} minutes the nodes of the cluster have {_sum_of(nodes)} GPUs; request "
                    f"fewer with --replicas or --gpus-per-replica, or wait longer with --wait"
                )
            if time.monotonic() >= next_log:
                logger.info("waiting for the GPUs of %s: the nodes have %s", demand, _sum_of(nodes))
                next_log = time.monotonic() + _LOG_EVERY_S
            time.sleep(_LOOK_S)
    finally:
        request_resources(bundles=[])  # otherwise the cluster would keep them without need


def _sum_of(nodes: Sequence[float]) -> str:
    """The GPUs of the nodes, such as `8 + 4`."""
    return " + ".join(f"{have:g}" for have in nodes if have) or "no"


def replicas_up() -> tuple[int, int]:
    """How many replicas of this driver are loaded, and how many times one was lost and loaded again.

    Ray has no public API for this that works without its dashboard.
    """
    from ray._private.state import actors

    own = actors(job_id=ray.JobID.from_hex(ray.get_runtime_context().get_job_id())).values()
    pool = [actor for actor in own if "Replica" in actor["ActorClassName"]]
    return sum(actor["State"] == "ALIVE" for actor in pool), sum(int(actor["NumRestarts"]) for actor in pool)


class Replica(Scorer):
    """A scorer that, on CPUs, uses its share of the cores of the machine."""

    def __init__(self, job: Job, pool: Pool) -> None:
        if "cuda" not in pool.device:
            import torch

            torch.set_num_threads(
                max(1, ((os.cpu_count() or 1) - 1) // pool.high)
            )  # one core is left for reading
        super().__init__(job, pool.device)
        if self.peak_flops is not None:
            self.peak_flops *= min(pool.gpus or 1.0, 1.0)  # its share of a GPU that several replicas use
        gc.freeze()  # modules and weights are permanent: garbage collection need not visit them


class IsolatedReplica(Isolated):
    """A unit that is scored alone, on its own replica."""

    def __init__(self, span: Span, job: Job, pool: Pool) -> None:
        super().__init__(span, job, Replica(job, pool))


def isolated(span: Span, job: Job, pool: Pool) -> Any:
    """An actor that scores one unit alone."""
    actor: Any = ray.remote(max_restarts=0, **pool.resources)(IsolatedReplica)
    return actor.remote(span, job, pool)
