"""Score conversations with reward models on a Ray cluster. Importing this imports nothing heavy."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from armo_ray.engine.model import RewardModel
    from armo_ray.pipeline import score_dataset
    from armo_ray.schema import coefficients, vectors
    from armo_ray.text.tokenization import Encoder

__version__ = "0.1.0"

_HOMES = {
    "Encoder": "armo_ray.text.tokenization",
    "RewardModel": "armo_ray.engine.model",
    "coefficients": "armo_ray.schema",
    "score_dataset": "armo_ray.pipeline",
    "vectors": "armo_ray.schema",
}

__all__ = ["Encoder", "RewardModel", "coefficients", "score_dataset", "vectors"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
