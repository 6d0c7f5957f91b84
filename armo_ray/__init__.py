"""Score conversations with reward models on a Ray cluster. Importing this imports nothing heavy."""

import sys

_PROGRAMS = ("armo_ray", "armo_ray.bench", "jobs.score", "jobs.mine", "jobs.nightly", "jobs.bench")

# `python -m` looks in the working directory first, where a random.py of the user's would take the place of Python's
# own. This package is found now, so the directory may come last.
if "-m" in sys.orig_argv and set(_PROGRAMS).intersection(sys.orig_argv) and not sys.flags.safe_path:
    sys.path.append(sys.path.pop(0))

from typing import TYPE_CHECKING, Any  # noqa: E402 - it looks for modules of Python's own

from armo_ray.version import __version__  # noqa: E402

if TYPE_CHECKING:
    from armo_ray.engine.reward_model import RewardModel
    from armo_ray.outputs.schema import coefficients, vectors
    from armo_ray.score.pipeline import score_dataset
    from armo_ray.text.tokenization import Encoder

_HOMES = {
    "Encoder": "armo_ray.text.tokenization",
    "RewardModel": "armo_ray.engine.reward_model",
    "coefficients": "armo_ray.outputs.schema",
    "score_dataset": "armo_ray.score.pipeline",
    "vectors": "armo_ray.outputs.schema",
}

__all__ = ["Encoder", "RewardModel", "__version__", "coefficients", "score_dataset", "vectors"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
