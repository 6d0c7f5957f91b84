"""The job of a reward model: what is checked of the model before Ray starts.

Imports neither torch nor ray.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from armo_ray.errors import ConfigError
from armo_ray.model.chat import Chat
from armo_ray.model.checkpoint import Checkpoint, inspect
from armo_ray.model.families import HIDDEN, Family
from armo_ray.model.family_file import identity_of
from armo_ray.model.label_tokens import token_rows
from armo_ray.model.policy_pair import identity_of_pair, inspect_reference
from armo_ray.model.positions import check_keeps_hidden
from armo_ray.model.reference import Reference, check_given
from armo_ray.model.steps import check_system, has_system, read_pattern
from armo_ray.model.tokenizer_file import num_ids
from armo_ray.outputs.schema import HIDDEN_LAST, SCHEMA_VERSION, STEP_SCORES, hidden_field, scores_schema
from armo_ray.score import kept_columns
from armo_ray.score.about_model import about_model
from armo_ray.score.config import ModelOptions, ScoreConfig
from armo_ray.score.partitions import columns_to_keep
from armo_ray.score.run import (
    Check,
    Job,
    Scorer,
    detected,
    job_of,
    kept_types,
    labels_read,
    prepare_runs,
    warn_of_labels,
    with_labels,
)
from armo_ray.storage.filesystem import is_remote
from armo_ray.storage.models import local_model
from armo_ray.storage.units import Span
from armo_ray.text import labels
from armo_ray.text.input_columns import joined, of_names, of_schema

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelJob(Job):
    """A job whose scores a reward model gives."""

    model: str  # a directory that every node sees; with `revision`, a URI or hub id
    revision: str | None
    family: Family
    dtype: str
    token_budget: int | None
    fixed_packs: bool
    compile: bool | None
    device: str | None
    max_length: int
    truncate: str
    special_tokens: str
    reference: Reference | None = None  # of a policy, found as `model` is
    keep_hidden: bool = False

    @property
    def models(self) -> list[tuple[str, str | None]]:
        """The model and, of a policy, its reference model, each with its revision; None of a directory."""
        reference = [(self.reference.model, self.reference.revision)] if self.reference else []
        return [(self.model, self.revision), *reference]


def prepare(
    config: ModelOptions, write: bool = True, check: Check | None = None
) -> tuple[ModelJob, list[Span]]:
    """Check model, input and output, and write `_run.json`. Returns the job and its spans; scores nothing.

    `write=False` makes the same checks but writes nothing. `check` is a further check, which may raise ConfigError.

    Raises ConfigError if the run cannot begin.
    """
    ((job, spans),) = prepare_all([config], write, check)
    return job, spans


def prepare_all(
    configs: Sequence[ModelOptions], write: bool = True, check: Check | None = None
) -> list[tuple[ModelJob, list[Span]]]:
    """`prepare` for several runs: all are checked before the first `_run.json` is written."""
    prepared: Any = prepare_runs([(config, _scorer(config)) for config in configs], write, check)
    return list(prepared)


def prepare_dataset(config: ScoreConfig, seen: list[kept_columns.Seen]) -> ModelJob:
    """A job for rows with the columns `seen` that the caller reads and writes. Ignores `input` and `output`."""
    scorer = _scorer(config)
    columns = columns_to_keep({**config.keep, **config.keep_json}, (), [], with_labels(config))
    found = joined(
        of_schema(block.schema) if block.schema and block.schema.names else of_names(block.names)
        for block in seen
    )
    layout = detected(found, config, scorer)
    given = labels_read(config, layout, found)
    warn_of_labels(given, seen)
    job: Any = job_of(config, scorer, layout, columns, kept_types(columns, config, seen), given)
    return job  # type: ignore[no-any-return]


def _scorer(config: ModelOptions) -> Scorer:
    model = _model(config)
    family = model.checkpoint.family
    identity = {
        **_weights(config, model),
        "chat_fingerprint": model.chat.fingerprint,
        **identity_of(family),
        "dtype": config.dtype,
        "max_length": model.max_length,
        "truncate": config.use.truncate,
        "special_tokens": config.special_tokens,
    }
    if config.use.keep_hidden:
        identity["keep_hidden"] = True
    return Scorer(identity, partial(_job, config, model), family.step_end if family.by_step else None)


class _Model(NamedTuple):
    """A complete checkpoint, its chat, and the longest conversation to score, in tokens."""

    checkpoint: Checkpoint
    chat: Chat
    max_length: int
    reference: Checkpoint | None  # of a policy


def _model(config: ModelOptions) -> _Model:
    use = config.use
    path, revision = local_model(config.model, config.revision)
    checkpoint = inspect(path, None if is_remote(config.model) else revision, use.family)
    if is_remote(config.model):
        checkpoint = replace(checkpoint, revision=revision)
    check_given(checkpoint.family, use.reference, config.dtype)
    chat = Chat.load(checkpoint.path, checkpoint.family)
    token_rows(checkpoint.family, chat)  # may raise ConfigError
    read_pattern(chat)  # may raise ConfigError
    if use.family is None:
        check_system(chat)
    if checkpoint.family.name == "mlp-classifier" and has_system(chat):
        logger.warning(
            "the chat template puts a system prompt of its own before conversations that have none; WorldPM was "
            "trained with an empty one: give --family worldpm for it"
        )
    _check_family(config, checkpoint)
    _check_hidden(config, checkpoint)
    size, rows = num_ids(chat.tokenizer), _whole(checkpoint, "vocab_size")
    if size > rows:
        raise ConfigError(f"{checkpoint.path}: its tokenizer has {size} tokens, but its model {rows}")
    positions = _positions(checkpoint)
    if config.max_length is not None and config.max_length > positions:
        raise ConfigError(f"max-length: {config.max_length} is more than the model's {positions} positions")
    limits = (chat.model_max_length, checkpoint.family.max_length, positions)
    longest = config.max_length or min(limit for limit in limits if limit)
    return _Model(checkpoint, chat, longest, _reference(use.reference, checkpoint))


def _reference(given: Reference | None, policy: Checkpoint) -> Checkpoint | None:
    if given is None:
        return None
    path, revision = local_model(given.model, given.revision)
    checkpoint = inspect_reference(policy, path, None if is_remote(given.model) else given.revision)
    logger.info("memory holds two models: the policy, and the reference model %s", given.model)
    return replace(checkpoint, revision=revision) if is_remote(given.model) else checkpoint


def _positions(checkpoint: Checkpoint) -> int:
    """The most tokens that a model takes; an encoder with relative positions takes more than its config says."""
    stated = _whole(checkpoint, "max_position_embeddings")
    return max(stated, checkpoint.family.max_length or 0) if checkpoint.family.bidirectional else stated


def _whole(checkpoint: Checkpoint, name: str) -> int:
    value = checkpoint.config.get(name)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(
            f"{checkpoint.path}/config.json: {name} is {value!r:.100}, not a positive whole number"
        )
    return value


def _check_hidden(config: ModelOptions, checkpoint: Checkpoint) -> None:
    """Raises ConfigError if the hidden states cannot be kept as they are asked for."""
    if not config.use.keep_hidden:
        return
    check_keeps_hidden(checkpoint.family)
    if checkpoint.family.reads == "gate" and config.use.truncate != "none":
        raise ConfigError(
            "truncate: a prompt that is cut for one response has another hidden state than for the next, but one is "
            "kept for each prompt: use none with --keep-hidden"
        )


def _check_family(config: ModelOptions, checkpoint: Checkpoint) -> None:
    """Log the family and its rewards. Raises ConfigError if an option does not fit the family."""
    name, names = checkpoint.family.name, checkpoint.reward_names
    if checkpoint.family == HIDDEN:
        logger.info("hidden states of %d numbers", _whole(checkpoint, "hidden_size"))
        return
    if checkpoint.family.text != "response" and config.use.truncate != "none":
        raise ConfigError(f"truncate: the family {name} reads prompt and response as one text; use none")
    if checkpoint.family.text == "pairs" and config.dtype == "fp8":
        raise ConfigError(f"dtype: fp8 cannot be compared with bfloat16 for the family {name}; use bfloat16")
    if checkpoint.family.bidirectional and config.dtype == "fp8":
        raise ConfigError(f"dtype: fp8 is not for the encoder of the family {name}; use bfloat16")
    mean = "; the score is their mean" if len(names) > 1 and not checkpoint.family.gated else ""
    if checkpoint.family.by_step:
        mean = "; the score is the mean of the steps"
    if values := checkpoint.family.values:
        mean = f"; the score is their sum, weighted by {', '.join(f'{value:g}' for value in values)}"
    named = ", ".join(names) if len(names) < 7 else f"{names[0]} and {len(names) - 1} others"
    logger.info("model family %s: rewards %s%s", name, named, mean)


def _job(config: ModelOptions, model: _Model, settings: Mapping[str, Any], kept: pa.Schema) -> ModelJob:
    checkpoint, use = model.checkpoint, config.use
    metadata: dict[str, Any] = {
        "model": config.model,
        "model_revision": checkpoint.revision,
        **_weights(config, model),
        "model_family": checkpoint.family.name,
        "dtype": config.dtype,
        "schema_version": SCHEMA_VERSION,
        "run_fingerprint": settings["fingerprint"],
        **labels.described(settings["labels"]),
    }
    if model.reference is not None and use.reference is not None:
        metadata["reference_model"] = use.reference.model
        metadata["reference_revision"] = model.reference.revision
    if checkpoint.family.gated:
        metadata["reward_transform_matrix"] = checkpoint.transform
    elif checkpoint.reward_names:
        metadata["fixed_weights"] = checkpoint.coefficients
    own = [STEP_SCORES] if checkpoint.family.by_step else []
    if use.keep_hidden:
        size, dtype = _whole(checkpoint, "hidden_size"), "bfloat16" if config.dtype == "fp8" else config.dtype
        metadata["hidden"] = {"size": size, "dtype": dtype, "gates": checkpoint.family.reads == "gate"}
        own.append(hidden_field(HIDDEN_LAST, size, dtype))
    own += labels.fields(settings["labels"])
    return ModelJob(
        **settings,
        about=about_model(config, model.max_length, metadata),
        model=config.model if checkpoint.revision else str(checkpoint.path),
        revision=checkpoint.revision,
        family=checkpoint.family,
        dtype=config.dtype,
        token_budget=config.token_budget,
        fixed_packs=config.fixed_packs,
        compile=config.compile,
        device=config.device,
        max_length=model.max_length,
        truncate=use.truncate,
        special_tokens=config.special_tokens,
        scores=scores_schema(checkpoint.reward_names or None, kept, config.keep_text, metadata, own),
        reference=_found(use.reference, model.reference),
        keep_hidden=use.keep_hidden,
    )


def _found(reference: Reference | None, checkpoint: Checkpoint | None) -> Reference | None:
    """The reference model as every node finds it."""
    if reference is None or checkpoint is None:
        return None
    path = reference.model if checkpoint.revision else str(checkpoint.path)
    return replace(reference, model=path, revision=checkpoint.revision)


def _weights(config: ModelOptions, model: _Model) -> dict[str, Any]:
    given = config.use.reference
    if given is None or model.reference is None:
        return {"model_fingerprint": model.checkpoint.fingerprint}
    return identity_of_pair(model.checkpoint, model.reference, given)
