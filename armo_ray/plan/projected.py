"""Work and speed that are projected: rows that are not there yet, and GPUs that have not been measured."""

import math
import re
from collections.abc import Sequence

from armo_ray.engine.peaks import peak_of
from armo_ray.errors import ConfigError
from armo_ray.model.checkpoint import inspect
from armo_ray.plan.intervals import Counted, Figure, exact, ratio
from armo_ray.plan.options import GPUS
from armo_ray.plan.remaining import Work
from armo_ray.plan.throughput import Throughput
from armo_ray.score.config import ScoreConfig
from armo_ray.storage.filesystem import is_remote
from armo_ray.storage.models import local_model

# The share of the peak in the data sheet that a run is assumed to reach. Packed passes of an 8B model can reach 0.63 by
# calculation; loading and short packs take some of it. The spread is that of the logarithm: 95 % are within a factor of
# 1.5.
_UTILIZATION, _SPREAD = 0.5, 0.207
_FLOAT32 = (
    15  # by the data sheets of A100 and H100, how much longer a float32 product takes than a 16-bit one
)
_LINEAR = re.compile(r"\.layers?\.\d+\..*\.weight$")


def like_sample(strata: Sequence[Counted], rows: int, unit_rows: int) -> Work:
    """The work of this many rows that are like those of a sample."""

    def of(name: str) -> Figure:
        per_row = ratio(strata, name, "rows", extrapolated=True)
        return (
            exact(0.0) if per_row is None else per_row.times(rows)._replace(low=max(per_row.low, 0.0) * rows)
        )

    candidates = of("candidates")
    units = Figure(*(max(1.0, math.ceil(x / unit_rows)) for x in candidates))
    return Work("projected", units, exact(rows), candidates, of("tokens"), of("computed"))


def as_stated(rows: int, tokens_per_row: float, unit_rows: int) -> Work:
    """The work of this many rows of one candidate and this many tokens each, nothing shared."""
    tokens, units = exact(rows * tokens_per_row), exact(math.ceil(rows / unit_rows))
    return Work("stated", units, exact(rows), exact(rows), tokens, tokens)


def estimated_speed(config: ScoreConfig, gpu: str, flops: float) -> Throughput:
    """An estimate of the speed of a replica from the GPU's data sheet and the model's operations per token.

    Args:
        gpu: a name in GPUS.
        flops: as flops_per_token returns them.

    Raises ConfigError if the GPU has no peak for the dtype.
    """
    peak = peak_of(GPUS[gpu], config.dtype)
    if peak is None:
        raise ConfigError(
            f"gpu: {gpu} has no known speed in {config.dtype}: give --computed-tokens-per-second"
        )
    share = min(config.gpus_per_replica or 1.0, 1.0)  # of one GPU: layers on several GPUs take turns
    source = (
        f"an estimate, not measured: half of the {peak / 1e12:,.0f} TFLOP/s in the data sheet of {GPUS[gpu]}"
    )
    return Throughput(_UTILIZATION * peak * share / flops, _SPREAD, 0.0, 0, source)


def estimated_speeds(config: ScoreConfig, context: float) -> dict[str, Throughput]:
    """An estimate for each GPU that has a peak for the dtype."""
    known = [gpu for gpu, name in GPUS.items() if peak_of(name, config.dtype) is not None]
    flops = flops_per_token(config, context)
    return {gpu: estimated_speed(config, gpu, flops) for gpu in known}


def flops_per_token(config: ScoreConfig, context: float) -> float:
    """Operations of the model for a token that attends to `context` tokens, as in `armo_ray.engine.flops`.

    For a policy, they include its reference model's and, by the time that they take in float32, those of the heads of
    both, as if all tokens were responses'.
    """
    if config.reference_model is None:
        return _flops(config, context)[0]
    other = config.model_copy(update={"model": config.reference_model, "revision": config.reference_revision})
    both = [_flops(one, context) for one in (config, other)]
    return sum(backbone + _FLOAT32 * head for backbone, head in both)


def _flops(config: ScoreConfig, context: float) -> tuple[float, float]:
    """Operations for a token of a model, and of a language-model head on it."""
    path, revision = local_model(config.model, config.revision)
    checkpoint = inspect(path, None if is_remote(config.model) else revision, config.family)
    shapes = [shape for name, shape in checkpoint.shapes.items() if _LINEAR.search(name) and len(shape) == 2]
    sizes = checkpoint.config
    width = sizes.get("head_dim") or sizes["hidden_size"] // sizes["num_attention_heads"]
    attention = 4 * sizes["num_hidden_layers"] * sizes["num_attention_heads"] * width
    if checkpoint.family.bidirectional:
        attention *= 2  # a token attends to those after it too
    backbone = float(2 * sum(rows * columns for rows, columns in shapes) + attention * context)
    return backbone, 2.0 * sizes.get("vocab_size", 0) * sizes["hidden_size"]
