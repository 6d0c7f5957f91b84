"""`armo-ray evaluate`: how often scores agree with the labels of rows, by the rules of a benchmark."""

from dataclasses import asdict
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.evaluate import first_errors as step_rules
from armo_ray.evaluate.benchmarks import BENCHMARKS, STEPWISE
from armo_ray.evaluate.charts import figures
from armo_ray.evaluate.diagnostics import differences, reliability
from armo_ray.evaluate.items import Items
from armo_ray.evaluate.labelled_rows import read_items
from armo_ray.evaluate.options import EvaluateOptions
from armo_ray.evaluate.published import against, find_published
from armo_ray.evaluate.results import evaluate_items
from armo_ray.evaluate.tables import evaluation, first_errors
from armo_ray.measures.calibration import fit_temperature
from armo_ray.model.families import FAMILIES
from armo_ray.outputs.dataset import delete, names_in, new_output, own_files
from armo_ray.outputs.scores import Scores, open_scores
from armo_ray.storage.json_files import to_json

REPORT = "evaluation.json"


def run(options: EvaluateOptions, replace: bool = False) -> None:
    """Print the tables of an evaluation and, with an output, write its numbers and figures. Raises ConfigError.

    With `replace`, the output may hold an earlier evaluation, which is deleted once the new one is computed.
    """
    scores = open_scores(options.scores, options.partition)
    entry = check(options, scores.metadata["model"])
    tables = first_errors if options.benchmark == STEPWISE else evaluation
    if options.output is None:
        print(tables(_evaluate(options, scores, entry)))
        return
    with new_output(options.output, "evaluate", replace=replace) as store:
        numbers = _evaluate(options, scores, entry)
        print(tables(numbers))
        delete(store, own_files(names_in(store)))
        drawn = {} if options.benchmark == STEPWISE else figures(numbers)
        for name, text in drawn.items():
            store.write(name, text.encode())
        store.write(REPORT, to_json(numbers))


def check(options: EvaluateOptions, model: str) -> dict[str, Any] | None:
    """The published results of a model, or None. Raises ConfigError if the options contradict each other."""
    if options.benchmark != "labelled" and options.by:
        raise ConfigError(
            f"--by: {options.benchmark} has its own subsets; leave out --by, or use --benchmark labelled"
        )
    if options.benchmark != STEPWISE and options.threshold is not None:
        raise ConfigError(f"--threshold: {options.benchmark} has none; it is of --benchmark {STEPWISE}")
    return find_published(options.benchmark, model, options.published)


def _evaluate(options: EvaluateOptions, scores: Scores, entry: dict[str, Any] | None) -> dict[str, Any]:
    if options.benchmark == STEPWISE:
        return _stepwise(options, scores)
    benchmark = BENCHMARKS[options.benchmark]
    needs, takes = (options.by, ()) if options.by else (benchmark.needs, benchmark.takes)
    items = read_items(scores, options, needs, takes, options.benchmark)
    numbers = evaluate_items(items, benchmark, options.bootstrap, options.seed)
    sections = {name: row["accuracy"] for name, row in numbers["sections"].items()}
    return {
        "benchmark": options.benchmark,
        "scores": list(scores.outputs),
        "model": scores.metadata,
        **numbers,
        "ties": items.ties,
        "judge": items.verdicts and asdict(items.verdicts.counting),
        "calibration": _calibration(items),
        "published": None if entry is None else against(entry, sections),
    }


def _stepwise(options: EvaluateOptions, scores: Scores) -> dict[str, Any]:
    threshold = options.threshold
    if threshold is None:
        family = FAMILIES.get(scores.metadata.get("model_family", ""))
        threshold = 0.0 if family is not None and family.reads == "response" else 0.5
    found = step_rules.first_errors(
        step_rules.read_solutions(scores, options), threshold, options.bootstrap, options.seed
    )
    about = {"benchmark": options.benchmark, "scores": list(scores.outputs), "model": scores.metadata}
    return about | found


def _calibration(items: Items) -> dict[str, Any]:
    margin = differences(items)[:, 0]
    try:
        temperature = fit_temperature(margin)
    except ConfigError as error:
        return {"reason": str(error).removesuffix("; give --temperature")}
    return {"temperature": temperature, **reliability(margin, temperature)}
