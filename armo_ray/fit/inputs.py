"""What a fit starts from, checked before any work: outputs of one backbone, labels, pairs and the backbone's files."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import advice
from armo_ray.fit.labelled import LabelJob, Range
from armo_ray.fit.options import FitOptions
from armo_ray.fit.teacher import Teacher
from armo_ray.model.checkpoint import Checkpoint, inspect
from armo_ray.model.families import FAMILIES, HIDDEN, Family
from armo_ray.outputs.hidden import HiddenOutputs, check_same, open_hidden
from armo_ray.storage.models import local_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Outputs with hidden states of one backbone, and the backbone."""

    labelled: HiddenOutputs
    pairs: HiddenOutputs | None  # None: no output was named for pairs, and OUT itself may have some
    model: Checkpoint


def open_inputs(options: FitOptions) -> Inputs:
    """Open the outputs and the backbone. Raises ConfigError if they do not fit together."""
    labelled = open_hidden(options.scores)
    pairs = open_hidden(options.pairs) if options.pairs else None
    if pairs is not None:
        check_same(labelled, pairs)
    read = reading(labelled)
    if read:
        logger.warning("the hidden states are of text read with %s: score with it, too", " ".join(read))
    return Inputs(labelled, pairs, find_backbone(options, labelled))


def reading(hidden: HiddenOutputs) -> list[str]:
    """Options, other than the default, that the text was read with and that must be given to score alike."""
    defaults = {"special_tokens": "plain", "truncate": "none", "tool_calls": "template"}
    given = {name: hidden.read_by.get(name) for name in defaults}
    return [
        f"--{name.replace('_', '-')} {value}"
        for name, value in given.items()
        if value not in (None, defaults[name])
    ]


def find_backbone(options: FitOptions, hidden: HiddenOutputs) -> Checkpoint:
    """The files of the model that made the hidden states.

    Raises ConfigError if they are others, or if a fitted head would read other hidden states than these.
    """
    metadata, family = hidden.metadata, _family(hidden)
    name = options.model or str(metadata["model"])
    revision = None if options.model else metadata.get("model_revision")
    directory, revision = local_model(name, revision)
    recorded = metadata["model_fingerprint"]
    try:
        model = inspect(directory, None if directory != name else revision, family=family)
    except ConfigError as error:
        if options.model is not None:
            raise
        raise ConfigError(
            f"{error}; the hidden states are of that model: say where its files are with --model"
        ) from None
    if model.fingerprint != recorded:
        raise ConfigError(
            f"{name}: its fingerprint is {model.fingerprint}, but the hidden states in {hidden.outputs[0]} are of "
            f"{metadata['model']} with fingerprint {recorded}: {_way(options, metadata)}"
        )
    return model


def _way(options: FitOptions, metadata: Mapping[str, Any]) -> str:
    """What to do about files that are not those of the hidden states."""
    if options.model is None:
        return "its files have changed: give the ones that were read with --model"
    return (
        f"leave --model out, or give the files of {metadata['model']}; a fingerprint is of the head too, so embed all "
        f"rows of a fit with one model"
    )


def _family(hidden: HiddenOutputs) -> Family:
    """The family by which the model was read, on which its fingerprint depends.

    Raises ConfigError unless it reads the text and the token of the families `armorm` and `classifier`, as which a
    fitted head is loaded.
    """
    name = str(hidden.metadata["model_family"])
    family = HIDDEN if name == HIDDEN.name else FAMILIES.get(name)
    if family is None or not _reads_as_fitted(family):
        raise ConfigError(
            f"{hidden.outputs[0]}: its hidden states are those that the family {name} reads, of another text or token "
            f"than a fitted head: make them with armo-ray embed, whatever head the model has"
        )
    return family


def _reads_as_fitted(family: Family) -> bool:
    """Whether it reads the last token of the conversation with its response, in the tokenizer's own template."""
    plain = not (family.append or family.template or family.bidirectional) and family.system is None
    return plain and family.bos and family.text == "response" and family.reads in ("last", "gate")


def objectives_of(options: FitOptions, hidden: HiddenOutputs) -> tuple[str, ...]:
    """The labels to predict. Raises ConfigError if there are none, or not one that was asked for."""
    known = hidden.label_names
    if not known:
        raise ConfigError(
            f"{hidden.outputs[0]}: it holds no labels: run armo-ray embed with --label NAME=COLUMN, or fit one reward "
            f"to pairs with --head bradley-terry"
        )
    asked = [("objective", name) for name in options.objective] + [
        ("--scale", name) for name in options.scale
    ]
    for what, name in asked:
        if name not in known:
            raise ConfigError(f"{what} {name}: no such label in {hidden.outputs[0]}; {advice(name, known)}")
    names = options.objective or known
    if unused := sorted(set(options.scale) - set(names)):
        raise ConfigError(f"--scale {unused[0]}: it is none of the objectives {', '.join(names)}")
    return names


def scales_of(options: FitOptions, hidden: HiddenOutputs, names: Sequence[str]) -> tuple[Range | None, ...]:
    """The range of each label: given, or else declared by its layout."""
    return tuple(options.scale.get(name, hidden.scales.get(name)) for name in names)


def reward_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of rewards for labels, as columns and expressions take them. Raises ConfigError if two become one."""
    named = tuple(re.sub(r"\W+", "_", name).strip("_") for name in names)
    for name, own in zip(names, named, strict=True):
        if not own or named.count(own) > 1:
            raise ConfigError(
                f"objective {name}: as a reward it would be named {own!r}, which is not its own name"
            )
    return named


def length_name(options: FitOptions, names: Sequence[str]) -> str | None:
    """The name of an objective that predicts length, if rewards must not follow it."""
    if options.verbosity != "length" or options.head != "armorm" or options.target_scores is not None:
        return None
    return "length" if "length" not in names else "response_length"


def label_job(
    options: FitOptions, hidden: HiddenOutputs, work: str, teacher: Teacher | None = None
) -> LabelJob:
    """What is fitted to the rows. Raises ConfigError if the labels do not fit the options."""
    if teacher is not None:
        names: tuple[str, ...] = teacher.names
        if options.objective:
            raise ConfigError(
                "--objective does not go with --target-scores: all rewards of the larger model are learned"
            )
        scales: tuple[Range | None, ...] = (None,) * len(names)
    else:
        names = objectives_of(options, hidden)
        scales = scales_of(options, hidden, names)
    length = length_name(options, names)
    if options.verbosity not in ("length", "none", *names) and teacher is None:
        raise ConfigError(
            f"--verbosity {options.verbosity}: it is neither length nor none nor an objective; "
            f"{advice(options.verbosity, names)}"
        )
    if teacher is None and names == (options.verbosity,):
        raise ConfigError(
            f"--verbosity {options.verbosity}: it is the only objective, and the one that others must not follow has "
            f"no weight of its own: give another --objective, or --verbosity none"
        )
    weighted = [name for name in names if name != options.verbosity]
    if teacher is None and len(weighted) == 1 and options.gate in ("constant", "mlp"):
        raise ConfigError(
            f"--gate {options.gate}: {weighted[0]} is the only reward in the score, whose weight is 1: leave --gate "
            f"out, or give another --objective"
        )
    return LabelJob(
        names,
        scales,
        length,
        hidden.size,
        options.folds,
        options.test_fraction,
        options.seed,
        work,
        teacher,
    )
