"""A head with all that there is to say of it: one reward from pairs, or several from labels with a gate."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from armo_ray.errors import ConfigError
from armo_ray.fit import figures, student
from armo_ray.fit.checkpoint import FittedHead
from armo_ray.fit.gate import choose_gate, uneven, without_pairs
from armo_ray.fit.held_out_table import Scored, Split, fit_linear, log_odds, longer, split_of, table
from armo_ray.fit.inputs import Inputs, label_job
from armo_ray.fit.labelled import is_tested
from armo_ray.fit.objectives import fit_objectives
from armo_ray.fit.options import FitOptions
from armo_ray.fit.pairs import Pairs
from armo_ray.fit.spans import TaskRunner, spans_of
from armo_ray.fit.teacher import read_teacher
from armo_ray.fitting.gates import weights_of
from armo_ray.fitting.held_out import Accuracy
from armo_ray.formatting.svg import Chart

logger = logging.getLogger(__name__)

DRAWN = 5_000  # prompts of a figure

Array = npt.NDArray[np.float64]


class Fit(NamedTuple):
    """A head, its facts for fit.json, and its figures by file name."""

    head: FittedHead
    facts: dict[str, Any]
    figures: dict[str, Chart]


def fit_several(options: FitOptions, inputs: Inputs, pairs: Pairs, work: str, run_tasks: TaskRunner) -> Fit:
    """A head with a reward for each label, and a gate fitted to pairs."""
    job = label_job(options, inputs.labelled, work)
    spans = spans_of(inputs.labelled, options.task_rows)
    fitted = fit_objectives(options, job, spans, run_tasks)
    split = the_split(options, pairs)
    if split.fitted.any():
        chosen = choose_gate(options, fitted, pairs, split)
    else:
        chosen = without_pairs(fitted, options.gate, len(pairs))
    gate = chosen.gate
    if gate.kind == "uniform" and (told := uneven(fitted)):
        logger.warning("%s", told)
        chosen.facts["why"] = f"{chosen.facts['why']} {told}".strip()
    charts: dict[str, Chart | None] = {
        "objectives.svg": figures.correlations(fitted.names, fitted.sample.predicted)
    }
    if chosen.scored:
        own = {"uniform": "equal weights", "constant": "constant weights", "mlp": "network"}[gate.kind]
        charts["calibration.svg"] = calibration(chosen.scored[own], split)
    if gate.kind == "mlp":
        states = np.asarray(pairs.gates[:DRAWN])
        charts["gates.svg"] = figures.gate_by_cluster(
            fitted.names, states, weights_of(gate, states), options.seed
        )
    facts = {**fitted.facts, **pair_facts(split, table(chosen.scored, split)), "gate": chosen.facts}
    head = FittedHead("armorm", fitted.names, fitted.weights, fitted.transform, gate.layers, gate.temperature)
    return Fit(head, facts, present(charts))


def fit_student(options: FitOptions, inputs: Inputs, work: str, run_tasks: TaskRunner) -> Fit:
    """A head that learns the rewards and the gates of a larger model."""
    uri = str(options.target_scores)
    teacher = read_teacher(uri, work)
    job = label_job(options, inputs.labelled, work, teacher)
    spans = spans_of(inputs.labelled, options.task_rows)
    split = (options.test_fraction, options.seed)
    fitted = fit_objectives(options, job, spans, run_tasks, np.eye(len(teacher.names)))
    if teacher.gated and not inputs.labelled.has_gates:
        raise ConfigError(
            f"{inputs.labelled.outputs[0]}: it holds no hidden states of prompts: make it with embed"
        )
    learned = student.gate_of(teacher, spans, run_tasks, job.size, *split)
    ranks = student.agreement(teacher, fitted, learned, spans, run_tasks, split)
    if poor := student.poor_order(ranks):
        logger.warning("%s", poor)
    formula = student.formula_of(teacher.names, learned.transform)
    gate = learned.gate
    facts = {
        **fitted.facts,
        "pairs_split": {},
        "held_out": [],
        "gate": {"kind": gate.kind, "temperature": gate.temperature, **learned.facts},
        "teacher": {"output": teacher.uri, "model": teacher.model, "agreement": ranks, "formula": formula},
    }
    head = FittedHead(
        "armorm", fitted.names, fitted.weights, learned.transform, gate.layers, gate.temperature
    )
    charts = {"objectives.svg": figures.correlations(fitted.names, fitted.sample.predicted)}
    return Fit(head, facts, present(charts))


def fit_one(options: FitOptions, pairs: Pairs) -> Fit:
    """A Bradley-Terry head of one reward."""
    split = the_split(options, pairs)
    linear = fit_linear(pairs, split, options.folds)
    weights = linear.weights.astype(np.float32).astype(np.float64)[None]
    own = Scored(pairs.project(weights)[:, 0], 1.0)
    scored = {"longer answer": longer(pairs), "Bradley-Terry head": own}
    facts = {
        **pair_facts(split, table(scored, split)),
        "objectives": [],
        "masks": [],
        "rows": {},
        "penalties": [],
        "gate": {"kind": "none"},
        "bradley_terry": {"relative_penalty": linear.relative, "log_losses": linear.losses},
        "test_fraction": options.test_fraction,
        "folds": options.folds,
    }
    head = FittedHead("bradley-terry", ("reward",), weights, np.eye(1))
    return Fit(head, facts, present({"calibration.svg": calibration(own, split)}))


def the_split(options: FitOptions, pairs: Pairs) -> Split:
    """Which pairs are tested: those of the same prompts as the rows that are."""
    tested = is_tested(pairs.prompt_ids, options.test_fraction, options.seed)
    return split_of(pairs, tested, options.folds, options.seed)


def pair_facts(split: Split, rows: list[Accuracy]) -> dict[str, Any]:
    """Facts of the pairs that were fitted to and tested."""
    return {
        "pairs_split": {"fitted": int(split.fitted.sum()), "tested": int(split.tested.sum())},
        "held_out": [{k: _finite(v) for k, v in row._asdict().items()} for row in rows],
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def calibration(scored: Scored, split: Split) -> Chart | None:
    """The figure of held-out pairs."""
    return figures.calibration(log_odds(scored, split)) if split.fitted.any() else None


def present(charts: Mapping[str, Chart | None]) -> dict[str, Chart]:
    """The charts that there is something to draw for."""
    return {name: chart for name, chart in charts.items() if chart is not None}
