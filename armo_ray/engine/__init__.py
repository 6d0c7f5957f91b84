"""The scoring engine: token ids in, rewards out. Needs torch, transformers, safetensors and numpy only.

Knows nothing of Ray, files of conversations or Arrow. Importing this package imports no torch:
`RewardModel` loads it on first use, so that checkpoints can be inspected by processes that never score.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from armo_ray.engine.reward_model import RewardModel, Scores

__all__ = ["RewardModel", "Scores"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from armo_ray.engine import reward_model

    return getattr(reward_model, name)
