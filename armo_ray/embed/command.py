"""`armo-ray embed`: what the command runs. Imports nothing slow before the options are checked."""

import time

from armo_ray.embed.options import EmbedOptions
from armo_ray.options import Given
from armo_ray.score.command import score_all
from armo_ray.score.config import options_by_model
from armo_ray.score.status import errors_told


def run(given: Given) -> int:
    """Embed with each model given. Returns the exit status. Raises ConfigError before any work starts."""
    began = time.monotonic()
    with errors_told():
        return score_all(options_by_model(EmbedOptions, given.file, given.values), began)
