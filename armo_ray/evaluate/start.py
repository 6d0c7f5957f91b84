"""`armo-ray evaluate`: evaluate outputs, or score first. Imports nothing slow before the options are checked."""

import time
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.evaluate.options import EvaluateOptions
from armo_ray.exit_status import COMPLETE
from armo_ray.options import Given, load_options
from armo_ray.score.config import ScoreConfig


def run(given: Given) -> int:
    """Evaluate the outputs given; without any, score the input into one first. Returns the exit status."""
    scoring = given.of(ScoreConfig)
    output = scoring.pop("output", None)
    scores_first = bool(scoring.keys() - {"date"})  # the outputs given may be of a date too
    words = [*([given.file] if given.file else []), *given.values.get("scores", ())]
    if not scores_first and not words:
        raise ConfigError("give outputs of armo-ray score; or --input, --model and --output, to score first")
    if scores_first:
        if words:
            raise ConfigError(
                f"{words[0]}: give outputs of armo-ray score, or --input and --model, but not both"
            )
        if output is None:
            raise ConfigError("--output: required, to hold the scores and the tables")
        return _score_first(given, scoring, str(output))
    options = load_options(EvaluateOptions, given.file, given.of(EvaluateOptions))
    from armo_ray.evaluate import command

    command.run(options)
    return COMPLETE


def _score_first(given: Given, scoring: dict[str, Any], output: str) -> int:
    """Score into OUTPUT/scored, then evaluate that into OUTPUT/tables. Returns the exit status of scoring."""
    began = time.monotonic()
    options = load_options(EvaluateOptions, None, {**given.of(EvaluateOptions), "scores": f"{output}/scored"})
    from armo_ray.evaluate import benchmark_files, command
    from armo_ray.score.command import score_all
    from armo_ray.storage import lock
    from armo_ray.storage.store import Store

    command.check(options, str(scoring.get("model")))
    with lock.held(Store(str(options.output))):  # {date} is replaced there
        config, files = benchmark_files.scoring(options, scoring, output)
        with benchmark_files.naming(files):
            status = score_all([config], began)
        command.run(options.model_copy(update={"output": f"{options.output}/tables"}), replace=True)
    return status
