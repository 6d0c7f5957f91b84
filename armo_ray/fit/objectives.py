"""Heads for labels: fitted by ridge regression, measured on held-out prompts, and freed of verbosity."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from armo_ray.fit.inputs import reward_names
from armo_ray.fit.labelled import LabelJob, Sample, Total, sample, sum_all
from armo_ray.fit.options import FitOptions
from armo_ray.fit.spans import Span, TaskRunner
from armo_ray.fitting.penalty import penalties, transform_of
from armo_ray.fitting.ridge import Ridge, ridge
from armo_ray.measures.agreement import spearman

Array = npt.NDArray[np.float64]


class Objectives(NamedTuple):
    """Heads of K rewards."""

    names: tuple[str, ...]
    weights: Array  # (K, H), as float32 holds them
    transform: Array  # (K, K)
    dead: int | None  # the place of a reward that only lowers others
    facts: Mapping[str, Any]  # of fit.json
    sample: Sample  # predictions
    fold_weights: Array  # (F, K, H), each without the labels of a fold


def fit_objectives(
    options: FitOptions,
    job: LabelJob,
    spans: Sequence[Span],
    run_tasks: TaskRunner,
    transform: Array | None = None,
) -> Objectives:
    """Fit the rewards in two passes over the rows: sums, then predictions of a sample.

    transform: of a teacher, instead of penalties on verbosity.
    """
    names = reward_names(job.objectives)
    total = sum_all(job, spans, run_tasks)
    without = {} if job.length is None else {job.length: "give --verbosity none"}
    fitted = ridge(total.sums, allow_few=options.allow_few, without=without)
    weights = fitted.weights.astype(np.float32).astype(np.float64)
    sampled = sample(job, weights, spans, run_tasks)
    rows: list[dict[str, Any]] = []
    place = _verbosity(options, job)
    if transform is None:
        transform, rows = debias(names, sampled, place, options.max_penalty)
    facts = {
        "objectives": _objectives(names, job, fitted, sampled),
        "rows": _counts(total),
        "masks": _masks(names, total),
        "verbosity": None if place is None else names[place],
        "length": None if job.length is None else names[-1],
        "penalties": rows,
        "penalty_rows": int((~sampled.tested).sum()),
        "folds": options.folds,
        "test_fraction": options.test_fraction,
    }
    return Objectives(names, weights, transform, place, facts, sampled, fitted.fold_weights)


def _verbosity(options: FitOptions, job: LabelJob) -> int | None:
    """The place of the objective that rewards must not follow."""
    if job.length is not None:
        return len(job.objectives) - 1
    return job.names.index(options.verbosity) if options.verbosity in job.names else None


def debias(
    names: Sequence[str], sampled: Sample, place: int | None, limit: float
) -> tuple[Array, list[dict[str, Any]]]:
    """The transform, and what it does to the correlation of each reward with the verbosity at `place`."""
    if place is None:
        return np.eye(len(names)), []
    verbosity = sampled.predicted[:, place]
    fitted, tested = np.flatnonzero(~sampled.tested), np.flatnonzero(sampled.tested)
    others = [k for k in range(len(names)) if k != place]
    found = np.zeros(len(names))
    found[others] = _penalties(sampled.predicted[fitted][:, others], verbosity[fitted], limit, names, others)
    rows = []
    for k in others:
        cells: dict[str, Any] = {"name": names[k], "penalty": float(found[k])}
        for label, of in (("", fitted), ("held_out_", tested)):
            reward, v = sampled.predicted[of, k], verbosity[of]
            cells[f"{label}before"], cells[f"{label}after"] = (
                _rank(reward - factor * v, v) for factor in (0.0, found[k])
            )
        rows.append(cells)
    return transform_of(found, place), rows


def _penalties(
    rewards: Array, verbosity: Array, limit: float, names: Sequence[str], of: Sequence[int]
) -> Array:
    """Penalties on the scale of the rewards, found among standardized ones, so that the limit suits any labels."""
    deviations, own = (np.where(x > 0, x, 1.0) for x in (rewards.std(axis=0), verbosity.std()))
    found = penalties(rewards / deviations, verbosity / own, limit, [names[k] for k in of])
    return np.asarray(found * deviations / own)


def _rank(a: Array, b: Array) -> float | None:
    value = spearman(a, b) if len(a) > 1 else None
    return None if value is None or math.isnan(value) else float(value)


def _objectives(names: Sequence[str], job: LabelJob, fitted: Ridge, sampled: Sample) -> list[dict[str, Any]]:
    scales = (*job.scales, None) if job.length else job.scales
    return [
        {
            "name": name,
            "label": job.objectives[k],
            "scale": scales[k],
            "rows": int(fitted.rows[k]),
            "mean": float(fitted.mean[k]),
            "deviation": float(fitted.deviation[k]),
            "alpha": float(fitted.alpha[k]),
            "r2": float(fitted.r2[k]),
            "pearson": _finite(fitted.pearson[k]),
            "held_out": measured(
                sampled.predicted[:, k], sampled.labels[:, k], sampled.tested, float(fitted.mean[k])
            ),
        }
        for k, name in enumerate(names)
    ]


def measured(predicted: Array, labels: Array, tested: npt.NDArray[np.bool_], mean: float) -> dict[str, Any]:
    """How well labels of test prompts are predicted; R2 is against the mean of the labels that were fitted to."""
    rows = np.flatnonzero(tested & ~np.isnan(labels))
    p, y = predicted[rows], labels[rows]
    spread = float(((y - mean) ** 2).sum())
    some = len(rows) > 1 and y.std() > 0 and p.std() > 0
    return {
        "rows": len(rows),
        "r2": 1 - float(((y - p) ** 2).sum()) / spread if spread > 0 else None,
        "pearson": float(np.corrcoef(p, y)[0, 1]) if some else None,
        "spearman": _rank(p, y),
    }


def _counts(total: Total) -> dict[str, int]:
    fitted = total.rows - total.tested
    counts = {"read": total.rows, "fitted": fitted, "tested": total.tested}
    return counts | ({"not_scored_by_the_teacher": total.unmatched} if total.unmatched else {})


def _masks(names: Sequence[str], total: Total) -> list[dict[str, Any]]:
    """Rows by the labels that they have."""
    rows: dict[tuple[int, ...], int] = {}
    for (labels, _), sums in sorted(total.sums.groups.items()):
        rows[labels] = rows.get(labels, 0) + sums.rows
    return [{"labels": [names[k] for k in labels], "rows": count} for labels, count in rows.items()]


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
