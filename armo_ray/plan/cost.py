"""Hours and cost, from tokens and the speed of a replica."""

import math
from typing import Any

from armo_ray.plan.intervals import Figure
from armo_ray.plan.remaining import Work
from armo_ray.plan.throughput import Throughput
from armo_ray.score.config import ScoreConfig

_GPU_BUDGET, _CPU_BUDGET = 16_384, 1_024  # tokens in a pack: the engine's defaults


def token_budget(config: ScoreConfig) -> int:
    """Tokens in a pack, unless memory is short."""
    return config.token_budget or (_GPU_BUDGET if gpus_of(config) else _CPU_BUDGET)


def gpus_of(config: ScoreConfig) -> float:
    """GPUs per replica: as configured; by default 1, or 0 on a CPU."""
    on_cpu = config.device is not None and "cuda" not in config.device
    return config.gpus_per_replica if config.gpus_per_replica is not None else 0.0 if on_cpu else 1.0


def cost(
    config: ScoreConfig, todo: Work, rate: Throughput | None, price: float | None
) -> dict[str, Any] | None:
    """Hours and USD; None if the speed of a replica is unknown."""
    if rate is None:
        return None
    gpus, spread = gpus_of(config), rate.spread or 0.0
    load = rate.load_seconds / 3600 if todo.units.value else 0.0
    model = todo.computed.times(1 / rate.computed_tokens_per_second / 3600, spread)  # hours of one replica
    units = max(todo.units.value, 1.0)
    low, high = config.replicas or (1, 1)
    walls = {}
    for replicas in dict.fromkeys((low, high)):
        rounds = math.ceil(units / replicas) / units  # the last round may leave replicas idle
        walls[replicas] = Figure(*(hours * rounds + load for hours in model))
    paid = Figure(*((hours + min(high, units) * load) * (gpus or 1.0) for hours in model))
    return {
        "gpus_per_replica": gpus,
        "gpu_hours" if gpus else "replica_hours": paid,
        "wall_hours": walls,
        "price": price,
        "usd": None if price is None else paid.times(price),
    }
