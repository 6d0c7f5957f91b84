"""Labels on a declared scale become numbers from 0 to 1."""

from collections.abc import Sequence

import numpy as np

from armo_ray.errors import ConfigError
from armo_ray.fitting.statistics import Floats

Scales = Sequence[
    tuple[float, float] | None
]  # the smallest and the largest value of each objective; None for any


def check_scale(names: Sequence[str], low: Floats, high: Floats, scales: Scales) -> None:
    """Refuse labels outside of their scale.

    Args:
        low, high: (K,) the smallest and largest label of each objective, as in Statistics; infinite without any.
        scales: As they are declared.

    Raises:
        ConfigError: A label is outside.
    """
    for name, least, most, scale in zip(names, low, high, scales, strict=True):
        if scale is not None and least <= most and not scale[0] <= least <= most <= scale[1]:
            raise ConfigError(
                f"objective {name}: its labels go from {least:g} to {most:g}, which is outside of its scale "
                f"{scale[0]:g}:{scale[1]:g}: correct the labels or give --scale {name}=LOW:HIGH"
            )


def scaled(labels: Floats, names: Sequence[str], scales: Scales) -> Floats:
    """Labels (n, K) with the scales of `check_scale` mapped to 0 to 1; as they are without a scale.

    Raises:
        ConfigError: A label is outside of its scale, or a scale has no width.
    """
    for name, scale in zip(names, scales, strict=True):
        if scale is not None and not scale[0] < scale[1]:
            raise ConfigError(
                f"--scale {name}={scale[0]:g}:{scale[1]:g}: the first must be less than the second"
            )
    if len(labels):
        ranges = [
            np.fmin.reduce(labels, axis=0, initial=np.inf),
            np.fmax.reduce(labels, axis=0, initial=-np.inf),
        ]
        check_scale(names, ranges[0], ranges[1], scales)
    low = np.array([0.0 if scale is None else scale[0] for scale in scales])
    width = np.array([1.0 if scale is None else scale[1] - scale[0] for scale in scales])
    result: Floats = (labels - low) / width
    return result
