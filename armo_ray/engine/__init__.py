"""The scoring engine: token ids in, rewards out. Needs torch, transformers, safetensors and numpy only.

Does not depend on Ray, Arrow or files of conversations. Importing this package does not import torch:
`RewardModel` does so on first use, so that processes that never score can inspect checkpoints.
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
