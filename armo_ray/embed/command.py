"""`armo-ray embed`: what the command runs. Imports nothing slow before the options are checked."""

import logging
import time

from armo_ray.embed.options import EmbedOptions
from armo_ray.options import Given
from armo_ray.score.command import score_all
from armo_ray.score.config import options_by_model
from armo_ray.score.status import of_error

logger = logging.getLogger(__name__)


def run(given: Given) -> int:
    """Embed with each model given. Returns the exit status. Raises ConfigError before any work starts.

    The last line of the log says the status, of which Ray tells only whether it is 0.
    """
    began = time.monotonic()
    try:
        return score_all(options_by_model(EmbedOptions, given.file, given.values), began)
    except BaseException as error:
        logger.error("%s", of_error(error))
        raise
