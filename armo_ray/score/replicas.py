"""The replicas of the model in a run: their number and resources, and the actors that they are."""

import gc
import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import ray
from ray.exceptions import ActorHandleNotFoundError

from armo_ray.score.config import ModelOptions
from armo_ray.score.gpus import gpus_of_nodes, room_for, wait_for_gpus
from armo_ray.score.job import ModelJob
from armo_ray.score.stages import Isolated, Scorer

logger = logging.getLogger(__name__)

# Less than a core each: a pool that reserved every CPU would leave none for reading, and the job would hang.
ACTOR_CPUS = 0.25
STRANDED_S = 60.0  # for a replica without a node; a new node takes longer to start, and gets a new replica


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


def pool_of(config: ModelOptions) -> Pool:
    """The configured replicas, by default one for each GPU of the cluster, or one on its CPUs.

    Raises ConfigError if this machine has too few GPUs, or if a cluster still has too few after `--wait` minutes.
    """
    nodes = gpus_of_nodes()
    gpus = config.gpus_per_replica if config.gpus_per_replica is not None else min(1.0, sum(nodes))
    room = room_for(gpus, nodes) if gpus else 1
    low, high = config.replicas or (max(1, room),) * 2
    if gpus and room < low:
        wait_for_gpus(low, gpus, config.wait)
    if not gpus and config.dtype != "float32":
        logger.warning("%s is slow and inexact on CPUs; --dtype float32 is exact", config.dtype)
    count = "1 replica" if high == 1 else f"{high} replicas" if low == high else f"{low} to {high} replicas"
    logger.info("scoring on %s, %g GPUs each", count, gpus)
    device = ",".join(f"cuda:{i}" for i in range(max(1, int(gpus)))) if gpus else "cpu"
    return Pool(gpus, low, high, config.device or device)


def replicas_up() -> tuple[int, int]:
    """How many replicas of this driver are loaded, and how many times one was lost and loaded again."""
    pool = _own_replicas()
    return sum(actor["State"] == "ALIVE" for actor in pool), sum(int(actor["NumRestarts"]) for actor in pool)


def end_replicas() -> None:
    """Kill the replicas of this driver that are left.

    After a graph that lost a node, Ray Data may keep replicas for as long as the driver lives, one that waits for
    another node among them: they would hold the GPUs that the next replica needs.
    """
    _kill(actor["ActorID"] for actor in _own_replicas() if actor["State"] != "DEAD")


def end_stranded(pool: Pool, since: dict[str, float]) -> None:
    """Kill the replicas that for STRANDED_S had no room on any node, since theirs was lost.

    Otherwise Ray may keep the units queued at them until such a node is back. They are scored by the replicas that
    are left; where none is, there is nothing to do but wait.

    Args:
        pool: the replicas of the run.
        since: when each of them, by its id, was first seen without room; updated.
    """
    if not pool.gpus:
        return
    own = _own_replicas()
    alive = sum(actor["State"] == "ALIVE" for actor in own)
    lost = {actor["ActorID"] for actor in own if actor["State"] == "RESTARTING"}
    if not alive or room_for(pool.gpus, gpus_of_nodes()) >= alive + len(lost):
        lost = set()
    now = time.monotonic()
    for known in since.keys() - lost:
        del since[known]
    over = [actor for actor in lost if now - since.setdefault(actor, now) >= STRANDED_S]
    if over:
        logger.warning(
            "%d replicas lost their node, and no other has room for them: going on without", len(over)
        )
    _kill(over)


def _kill(actors: Iterable[str]) -> None:
    """Kill actors of this driver by their ids."""
    worker: Any = ray._private.worker.global_worker
    for actor in actors:
        with suppress(ActorHandleNotFoundError):  # its end has begun
            worker.core_worker.kill_actor(ray.ActorID.from_hex(actor), True)


def _own_replicas() -> list[dict[str, Any]]:
    """The replicas of this driver. Ray has no public API for this that works without its dashboard."""
    from ray._private.state import actors

    own = actors(job_id=ray.JobID.from_hex(ray.get_runtime_context().get_job_id())).values()
    return [actor for actor in own if "Replica" in actor["ActorClassName"]]


class Replica(Scorer):
    """A scorer that, on CPUs, uses its share of the cores of the machine."""

    def __init__(self, job: ModelJob, pool: Pool) -> None:
        if "cuda" not in pool.device:
            import torch

            cores = (os.cpu_count() or 1) - 1  # one is left for reading
            torch.set_num_threads(max(1, cores // pool.high))
        super().__init__(job, pool.device)
        if self.peak_flops is not None:
            self.peak_flops *= min(pool.gpus or 1.0, 1.0)  # its share of a GPU that several replicas use
        gc.freeze()  # modules and weights are permanent: garbage collection need not visit them


class IsolatedReplica(Isolated):
    """Scores one unit after the other, alone, on its own replica."""

    def __init__(self, job: ModelJob, pool: Pool) -> None:
        super().__init__(job, Replica(job, pool))


def isolated(job: ModelJob, pool: Pool) -> Any:
    """An actor that scores units alone."""
    actor: Any = ray.remote(max_restarts=0, **pool.resources)(IsolatedReplica)
    return actor.remote(job, pool)
