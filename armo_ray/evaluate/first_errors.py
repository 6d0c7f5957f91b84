"""ProcessBench: how often the first wrong step of a solution is found by the scores of its steps.

Source: code/run_eval_prm_rlhflow.py of QwenLM/ProcessBench. The first step that a model takes for wrong is the answer;
of a solution without a wrong step, there must be none. A subset's number is the harmonic mean of the accuracies on
solutions with an error and without.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from armo_ray.errors import ConfigError
from armo_ray.evaluate.diagnostics import interval, resampled
from armo_ray.evaluate.items import Floats
from armo_ray.expressions.expressions import quote
from armo_ray.outputs.database import database
from armo_ray.outputs.options import ScoresOptions
from armo_ray.outputs.schema import STEP_SCORES
from armo_ray.outputs.scores import Scores, literal, scan
from armo_ray.storage.local_files import readable

COLUMNS = ("id", "label")  # of the published files; an id is its subset and a number
TUNED_ON = "gsm8k"  # the subset that a threshold is chosen on
_NO_ERROR = -1


class Solution(NamedTuple):
    """A solution: its subset, the index of its first wrong step or -1, and its steps' scores, None if it has none."""

    subset: str
    label: int
    steps: Sequence[float] | None
    where: str


def read_solutions(scores: Scores, options: ScoresOptions) -> list[Solution]:
    """Every solution of the outputs, scored or rejected. Raises ConfigError if the outputs lack what is needed."""
    with database(options) as con:
        available = con.sql(scan(scores.parts)).columns
        if missing := [name for name in (STEP_SCORES.name, *COLUMNS) if name not in available]:
            raise ConfigError(
                f"{scores.outputs[0]}: no column {missing[0]}: score ProcessBench's files with a process model and "
                f"--keep {' '.join(COLUMNS)}"
            )
        names = ", ".join(map(quote, (*COLUMNS, STEP_SCORES.name, "source", "source_row", "flags")))
        rows = con.sql(f"SELECT {names} FROM ({scan(scores.parts)})").fetchall()
        files = ", ".join(literal(readable(part.uri)) for part in scores.rejects)
        rejected = con.sql(f"SELECT source, source_row, raw FROM read_parquet([{files}])") if files else None
        raws = rejected.fetchall() if rejected is not None else []
    found = []
    for name, label, steps, source, row, flags in rows:
        whole = None if "empty_steps" in (flags or ()) else steps  # steps left out would shift the others
        found.append(_solution(name, label, whole, f"{source} row {row}"))
    for source, row, raw in raws:
        content = json.loads(raw or "{}")
        found.append(_solution(content.get("id"), content.get("label"), None, f"{source} row {row}"))
    return sorted(found, key=lambda solution: (solution.subset != TUNED_ON, solution.subset, solution.where))


def _solution(name: Any, label: Any, steps: Sequence[float] | None, where: str) -> Solution:
    try:
        index = int(label)
    except (TypeError, ValueError):
        index = -2
    if not _NO_ERROR <= index < (len(steps) if steps else 1 << 30):
        raise ConfigError(f"{where}: label {label!r:.100}: expected the index of one of its steps, or -1")
    return Solution(str(name).rpartition("-")[0] or "all", index, steps, where)


def bounds(solutions: Sequence[Solution]) -> Floats:
    """The thresholds (G, 2) between which a solution is judged as labeled: above the first, up to the second.

    A step is taken for wrong if its score is below the threshold. NaN for a solution without scores.
    """
    rows = []
    for _, label, steps, _ in solutions:
        if not steps:
            rows.append((np.nan, np.nan))
        elif label == _NO_ERROR:
            rows.append((-np.inf, min(steps)))
        else:
            rows.append((steps[label], min(steps[:label], default=np.inf)))
    return np.array(rows, np.float64).reshape(-1, 2)


def judged(limits: Floats, threshold: float) -> Floats:
    """1 for each solution that is judged as labeled at a threshold, 0 for the others, (G,)."""
    return ((limits[:, 0] < threshold) & (threshold <= limits[:, 1])).astype(np.float64)


def harmonic(first: Any, second: Any) -> Any:
    """The harmonic mean of two accuracies; 0 if both are 0."""
    total = np.asarray(first) + second
    return np.where(total > 0, 2 * np.asarray(first) * second / np.where(total > 0, total, 1), 0.0)


def first_errors(solutions: Sequence[Solution], threshold: float, samples: int, seed: int) -> dict[str, Any]:
    """The accuracies of every subset at a threshold, their F1 with its interval, and the mean F1.

    `tuned` has the same numbers at the threshold that is best for TUNED_ON, as eval/process_eval.sh of ImplicitPRM
    chooses it; it is None without solutions of that subset. Raises ConfigError if a subset has no solution with an
    error, or none without.
    """
    parts = _by_subset(solutions)
    generator = np.random.default_rng(seed)
    tuned = _best_threshold(*parts[TUNED_ON]) if TUNED_ON in parts else None
    return {
        "items": len(solutions),
        "unscored": sum(not solution.steps for solution in solutions),
        **_at(parts, threshold, samples, generator),
        "tuned": None if tuned is None else _at(parts, tuned, samples, generator),
    }


def _by_subset(solutions: Sequence[Solution]) -> dict[str, tuple[Floats, Floats]]:
    """For every subset, the bounds of the solutions with an error and of those without."""
    limits = bounds(solutions)
    names = np.array([solution.subset for solution in solutions])
    wrong = np.array([solution.label != _NO_ERROR for solution in solutions])
    parts = {
        str(n): (limits[(names == n) & wrong], limits[(names == n) & ~wrong]) for n in dict.fromkeys(names)
    }
    for name, (with_error, without) in parts.items():
        if not len(with_error) or not len(without):
            raise ConfigError(
                f"{name}: {len(with_error)} solutions have a wrong step and {len(without)} have none; both kinds are "
                f"needed"
            )
    return parts


def _at(
    parts: Mapping[str, tuple[Floats, Floats]], threshold: float, samples: int, generator: np.random.Generator
) -> dict[str, Any]:
    subsets = {}
    for name, both in parts.items():
        credit = [judged(limits, threshold) for limits in both]
        wrong, right = (float(own.mean()) for own in credit)
        low, high = interval(harmonic(*(resampled(own, samples, generator) for own in credit)))
        sizes = {"with_error": len(both[0]), "without_error": len(both[1])}
        found = {"error_accuracy": wrong, "correct_accuracy": right, "f1": float(harmonic(wrong, right))}
        subsets[name] = sizes | found | {"low": low, "high": high}
    mean = float(np.mean([row["f1"] for row in subsets.values()]))
    return {"threshold": threshold, "subsets": subsets, "f1": mean}


def _best_threshold(with_error: Floats, without: Floats) -> float:
    """The threshold with the highest F1, the smallest of several."""
    limits = np.unique(np.concatenate((with_error, without))[:, 1])
    tried = limits[np.isfinite(limits)]
    if not len(tried):
        return 0.0
    found = [harmonic(judged(with_error, t).mean(), judged(without, t).mean()) for t in tried]
    return float(tried[int(np.argmax(found))])
