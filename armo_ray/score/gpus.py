"""The GPUs of a cluster: how many replicas they have room for, and waiting for more."""

import logging
import os
import time
from collections.abc import Sequence

import ray

from armo_ray.errors import ConfigError

logger = logging.getLogger(__name__)

_LOOK_S = 5.0
_LOG_EVERY_S = 30.0


def room_for(gpus: float, nodes: Sequence[float]) -> int:
    """How many replicas of `gpus` GPUs fit. `nodes`: the GPUs of each; a replica uses one node, a fraction one GPU."""
    if gpus < 1:
        return int(sum(nodes)) * int(1 / gpus + 1e-6)
    return sum(int(have // gpus) for have in nodes)


def gpus_of_nodes() -> list[float]:
    """The GPUs of each node that is alive."""
    return [node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]]


def wait_for_gpus(replicas: int, gpus: float, minutes: float) -> None:
    """Request the GPUs of the replicas from the cluster, and wait until it has them."""
    demand = f"{replicas} replicas of {gpus:g} GPUs"
    if "RAY_ADDRESS" not in os.environ:
        have = sum(gpus_of_nodes())
        raise ConfigError(
            f"{demand}: this machine has {have:g}; use --gpus-per-replica 0 to score on its CPUs"
        )
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{"GPU": gpus}] * replicas)
    deadline, next_log = time.monotonic() + 60 * minutes, 0.0
    try:
        while room_for(gpus, nodes := gpus_of_nodes()) < replicas:
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
    """The GPUs of the nodes, most first, such as `8 + 4`."""
    return " + ".join(f"{have:g}" for have in sorted(nodes, reverse=True) if have) or "no"
