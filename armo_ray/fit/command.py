"""`armo-ray fit`: a checkpoint made of hidden states, labels and pairs, without a GPU.

Two passes over labelled rows (sums, then predictions of a sample), one over pairs; each is read in spans of units, here
or on a Ray cluster, and added in the order of the units. What a killed command did is kept beside the output.
"""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.fit.card import card, no_table
from armo_ray.fit.checkpoint import FittedHead, check_room, dropped_tensors, write_checkpoint
from armo_ray.fit.inputs import Inputs, label_job, open_inputs, reading
from armo_ray.fit.labelled import check_rows
from armo_ray.fit.options import FitOptions
from armo_ray.fit.pairs import PairJob, Pairs, collect
from armo_ray.fit.rewards import fit_one, fit_several, fit_student
from armo_ray.fit.spans import ROWS, TaskRunner, engine, in_order, spans_of
from armo_ray.fit.student import poor_order
from armo_ray.fit.teacher import content_of
from armo_ray.fit.work import clear, work_folder
from armo_ray.fitting.held_out import HEAD, Accuracy, table_rows
from armo_ray.formatting.numbers import number
from armo_ray.formatting.tables import text_table
from armo_ray.outputs.hidden import HiddenOutputs
from armo_ray.storage.commits import now
from armo_ray.storage.json_files import fingerprint_of
from armo_ray.storage.scratch import scratch_directory
from armo_ray.version import __version__

logger = logging.getLogger(__name__)

FACTS = "fit.json"
# options that change nothing about the head
_NOT_OF_THE_HEAD = {"output", "engine", "model", "date"}
_OF_SUMS = {"head", "target_scores", "folds", "test_fraction", "seed", "task_rows"}


def run(options: FitOptions) -> None:
    """Fit a head and write the checkpoint. Raises ConfigError before any work, or if the data do not allow a fit."""
    if "://" in options.output:
        raise ConfigError(
            f"--output {options.output}: a checkpoint is written to a directory of this machine; copy it"
        )
    output = Path(options.output)
    if not (output / FACTS).exists():
        check_room(output)
    inputs = open_inputs(options)
    identity = identity_of(options, inputs)
    if fitted_before(output, identity):
        logger.info("%s: already complete: a fit of the same inputs and options", output)
        clear(options.output)
        return
    check_room(output)
    with (
        work_folder(options.output, identity_of_sums(options, inputs, identity)) as work,
        scratch_directory() as scratch,
        engine(options.engine, work) as run_tasks,
    ):
        pairs, facts = read_pairs(options, inputs, work, scratch, run_tasks)
        if options.head == "bradley-terry":
            fit = fit_one(options, pairs)
        elif options.target_scores is not None:
            fit = fit_student(options, inputs, work, run_tasks)
        else:
            fit = fit_several(options, inputs, pairs, work, run_tasks)
        facts["pairs"] |= fit.facts.pop("pairs_split")
        facts |= {
            **about(options, inputs, fit.head, bool(len(pairs))),
            **fit.facts,
            "figures": sorted(fit.figures),
        }
        facts["fingerprint"] = fingerprint_of(identity)
        texts = {name: chart.standalone() for name, chart in fit.figures.items()}
        texts |= {FACTS: json.dumps(facts, indent=2) + "\n", "README.md": card(output.name, facts)}
        write_checkpoint(inputs.model, fit.head, output, texts)
    print(summary(output, facts))


def fitted_before(output: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a checkpoint of the same fit is there, which a command wrote that was killed as it ended."""
    try:
        facts = json.loads((output / FACTS).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and facts.get("fingerprint") == fingerprint_of(identity)


def identity_of(options: FitOptions, inputs: Inputs) -> dict[str, Any]:
    """What decides the head: the options, and the parts that are read."""
    teacher = None if options.target_scores is None else content_of(str(options.target_scores))
    parts = [*parts_of(inputs.labelled), *(parts_of(inputs.pairs) if inputs.pairs else [])]
    return {
        "version": __version__,
        "options": options.model_dump(mode="json", exclude=_NOT_OF_THE_HEAD),
        "backbone": inputs.model.fingerprint,
        "parts": parts,
        "teacher": teacher,
    }


def identity_of_sums(options: FitOptions, inputs: Inputs, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the sums over labelled rows, from which a command with other options may go on."""
    labels = None
    if options.head == "armorm" and options.target_scores is None:
        job = label_job(options, inputs.labelled, "")
        labels = {"names": job.names, "scales": job.scales, "length": job.length}
    return {
        "version": __version__,
        "options": options.model_dump(mode="json", include=_OF_SUMS),
        "labels": labels,
        "teacher": identity["teacher"],
        "parts": parts_of(inputs.labelled),
    }


def parts_of(hidden: HiddenOutputs) -> list[Any]:
    """The parts that are read of each unit, with their digests."""
    return [
        [unit.output, [[part.path, part.rows, part.digest] for part in (*unit.rows, *unit.prompts)]]
        for unit in hidden.units
    ]


def read_pairs(
    options: FitOptions, inputs: Inputs, work: str, scratch: Path, run_tasks: TaskRunner
) -> tuple[Pairs, dict[str, Any]]:
    """The pairs of the outputs that were named for them, or of OUT, and what there is to say of them."""
    hidden = inputs.pairs or inputs.labelled
    needs_gates = options.head == "armorm" and hidden.has_gates
    job = PairJob(work, needs_gates)
    learned = options.target_scores is not None  # as the larger model's gate is, nothing is fitted to pairs
    spans = [] if learned else spans_of(hidden, options.task_rows or ROWS)
    found = []
    for batch in in_order("looking for pairs", job, spans, run_tasks):
        for span, result in batch:
            check_rows(span, result.rows)
            found.append(result)
    pairs, both_ways = collect(work, found, scratch, hidden.size)
    equal = [name for result in found for name in result.equal]
    for what, names in (("equal texts", equal), ("both directions", both_ways)):
        if names:
            logger.warning("%s pairs dropped: %s, such as that of %s", number(len(names)), what, names[0])
    if options.pairs and not len(pairs):
        raise ConfigError(f"--pairs {hidden.outputs[0]}: no row has both a chosen and a rejected answer")
    if spans:
        logger.info("pairs: %s of %s prompts", number(len(pairs)), number(len(set(pairs.prompt_ids))))
    facts = {
        "pairs": {
            "used": len(pairs),
            "prompts": len(set(pairs.prompt_ids)),
            "rows_without_a_partner": sum(result.unpaired for result in found),
            "dropped_equal_texts": len(equal),
            "dropped_both_directions": len(both_ways),
            "dropped": {"equal_texts": equal[:100], "both_directions": both_ways[:100]},
        }
    }
    return pairs, facts


def about(options: FitOptions, inputs: Inputs, head: FittedHead, paired: bool) -> dict[str, Any]:
    """Facts of the backbone, the outputs and the options."""
    metadata, model = inputs.labelled.metadata, inputs.model
    return {
        "armo_ray": __version__,
        "created_at": now(),
        "head": head.kind,
        "options": options.model_dump(mode="json", exclude={"date"}),
        "backbone": {
            "model": metadata["model"],
            "revision": metadata.get("model_revision"),
            "fingerprint": model.fingerprint,
            "dtype": metadata["hidden"]["dtype"],
            "model_type": model.config.get("model_type"),
        },
        "data": [*_data(inputs.labelled, _use(options, inputs, paired)), *_data(inputs.pairs, "pairs")],
        "reading": reading(inputs.labelled),
        "dropped_tensors": dropped_tensors(model),
    }


def _use(options: FitOptions, inputs: Inputs, paired: bool) -> str:
    if options.target_scores is not None:
        return "rewards of the larger model"
    if options.head == "bradley-terry":
        return "nothing" if inputs.pairs else "pairs"
    return "labels" if inputs.pairs or not paired else "labels and pairs"


def _data(hidden: HiddenOutputs | None, use: str) -> list[Mapping[str, Any]]:
    if hidden is None:
        return []
    rows = dict.fromkeys(hidden.outputs, 0)
    units = dict.fromkeys(hidden.outputs, 0)
    for unit in hidden.units:
        rows[unit.output] += sum(part.rows for part in unit.rows)
        units[unit.output] += 1
    return [{"output": name, "use": use, "rows": rows[name], "units": units[name]} for name in hidden.outputs]


def accuracy_of(row: Mapping[str, Any]) -> Accuracy:
    """A row of the held-out table in the facts, where a number that is not known is null."""
    known: dict[str, Any] = {name: math.nan if value is None else value for name, value in row.items()}
    return Accuracy(**known)


def summary(output: Path, facts: Mapping[str, Any]) -> str:
    """What the command prints."""
    lines = [
        f"{output}: {facts['gate']['kind']} gate" if facts["head"] == "armorm" else f"{output}: one reward"
    ]
    if facts["objectives"]:
        head = ("reward", "rows", "alpha", "R2", "Pearson", "R2 held out")
        cells = [
            [
                row["name"],
                *map(number, (row["rows"], row["alpha"], row["r2"], row["pearson"], row["held_out"]["r2"])),
            ]
            for row in facts["objectives"]
        ]
        lines += ["", text_table(head, cells)]
    if facts["held_out"]:
        lines += ["", text_table(HEAD, table_rows(map(accuracy_of, facts["held_out"])))]
    if missing := no_table(facts):
        lines += ["", missing]
    if facts.get("teacher"):
        agreement = facts["teacher"]["agreement"]
        order = text_table(
            ("order of held-out rows", "value"), [[k, number(v)] for k, v in agreement.items()]
        )
        lines += ["", order, *filter(None, [poor_order(agreement)])]
    return "\n".join(lines)
