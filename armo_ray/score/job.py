"""From a configuration to a job: everything that can be determined or refused before Ray starts.

Imports neither torch nor ray.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple

import pyarrow as pa

from armo_ray.errors import ConfigError
from armo_ray.model.chat import Chat
from armo_ray.model.checkpoint import Checkpoint, inspect
from armo_ray.model.families import Family
from armo_ray.model.family_file import identity_of
from armo_ray.model.label_tokens import token_rows
from armo_ray.model.policy_pair import identity_of_pair, inspect_reference
from armo_ray.model.reference import Reference, check_given
from armo_ray.model.steps import check_system, has_system, read_pattern
from armo_ray.model.tokenizer_file import num_ids
from armo_ray.outputs.schema import SCHEMA_VERSION, scores_schema
from armo_ray.score import kept_columns, survey
from armo_ray.score.config import ScoreConfig
from armo_ray.score.partitions import columns_to_keep
from armo_ray.storage import commits, lock, parts, resume
from armo_ray.storage.content import settled
from armo_ray.storage.filesystem import is_remote
from armo_ray.storage.json_files import fingerprint_of
from armo_ray.storage.models import local_model
from armo_ray.storage.shards import find_shards
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span, cut
from armo_ray.text.detect import detect
from armo_ray.text.input_columns import InputColumns, joined, of_names, of_schema
from armo_ray.text.layouts import Layout
from armo_ray.text.messages import Reading
from armo_ray.version import __version__

logger = logging.getLogger(__name__)

_VERSIONED = ("ray", "torch", "transformers", "tokenizers", "pyarrow")


@dataclass(frozen=True)
class Job:
    """The settings that every worker needs; sent with each task."""

    output: str
    model: str  # a directory that every node sees; with `revision`, a URI or hub id
    revision: str | None
    family: Family
    dtype: str
    token_budget: int | None
    fixed_packs: bool
    compile: bool | None
    device: str | None
    layout: Layout
    reading: Reading
    unit_rows: int
    max_length: int
    truncate: str
    special_tokens: str
    fingerprint: str
    scores: pa.Schema  # of the scores, partition columns included
    carried: dict[str, str]  # name in the scores -> column of the input
    as_json: tuple[str, ...]  # names in the scores of the columns kept as JSON text
    keep_text: bool
    partition_by: tuple[str, ...]
    unread: tuple[str, ...] = ()  # input columns that are not read, to be displayed
    reference: Reference | None = None  # of a policy, found as `model` is

    @property
    def columns(self) -> list[str]:
        """The input columns to read."""
        return list(dict.fromkeys((*self.layout.sources, *self.carried.values())))


Check = Callable[["Job", list[Span], ScoreConfig], None]


def prepare(config: ScoreConfig, write: bool = True, check: Check | None = None) -> tuple[Job, list[Span]]:
    """Check model, input and output, and write `_run.json`. Returns the job and its spans; scores nothing.

    `write=False` makes the same checks but writes nothing. `check` is a further check, which may raise ConfigError.

    Raises ConfigError if the run cannot begin.
    """
    ((job, spans),) = prepare_all([config], write, check)
    return job, spans


def prepare_all(
    configs: Sequence[ScoreConfig], write: bool = True, check: Check | None = None
) -> list[tuple[Job, list[Span]]]:
    """`prepare` for several runs: all are checked before the first `_run.json` is written."""
    checked = [_checked(config, check) for config in configs]
    for job, _, identity, details in checked if write else ():
        store = Store(job.output)
        with lock.held(store, folders=()):  # another command may be writing there
            commits.open_run(store, identity, details)
    return [(job, spans) for job, spans, _, _ in checked]


class _Checked(NamedTuple):
    """A run that passed all checks, and the contents of its `_run.json`."""

    job: Job
    spans: list[Span]
    identity: dict[str, Any]
    details: dict[str, Any]


def _checked(config: ScoreConfig, check: Check | None) -> _Checked:
    model = _model(config)
    store = Store(config.output)
    shards = find_shards(config.input, each=config.days == 1)
    shards = [shard for shard in shards if not shard.uri.startswith(store.uri + "/")]
    if not shards:
        raise ConfigError(f"output {config.output}: the whole input lies in it")
    parts.check_directories(store, shards)
    columns = columns_to_keep({**config.keep, **config.keep_json}, config.partition_by, shards)
    seen = survey.survey(shards)
    layout, unread = _layout(seen, config, model, columns)
    kept_seen = [
        kept_columns.Seen(sample.shard.uri, list(sample.found.names), sample.schema, sample.rows)
        for sample in seen.samples
        if sample.found.names
    ]
    kept = _kept_types(columns, config, kept_seen)
    details = {"config": config.model_dump(mode="json"), "versions": _versions(), "carried": _encode(kept)}
    identity = _identity(config, model, layout, columns)
    run = commits.open_run(store, identity, details, write=False)
    log = commits.read_log(store, run)  # raises if a record is damaged, before any work
    committed = log.units_in_shards({shard.hash for shard in shards})
    kept = _decode(run.carried)  # types from the first run: a later shard must not change them
    kept_columns.check(kept, columns, config.keep_json, kept_seen)
    job = replace(_job(config, model, layout, columns, kept), unread=unread)
    try:
        shards = settled(store, shards, committed, job.columns)
    except OSError as error:
        raise ConfigError(f"input: cannot be compared with the committed rows: {error}") from error
    spans = cut(shards, job.fingerprint, config.unit_rows, layout.candidate_columns, seen.footers)
    resume.standing(
        store, spans, job.fingerprint, config.redo, config.forget, committed
    )  # may raise ConfigError
    if check is not None:
        check(job, spans, config)
    return _Checked(job, spans, identity, details)


def prepare_dataset(config: ScoreConfig, seen: list[kept_columns.Seen]) -> Job:
    """A job for rows with the columns `seen` that the caller reads and writes. Ignores `input` and `output`."""
    model, columns = _model(config), columns_to_keep({**config.keep, **config.keep_json}, (), [])
    found = joined(
        of_schema(block.schema) if block.schema and block.schema.names else of_names(block.names)
        for block in seen
    )
    layout = _detected(found, config, model)
    kept = _kept_types(columns, config, seen)
    return _job(config, model, layout, columns, kept)


class _Model(NamedTuple):
    """A complete checkpoint, its chat, and the longest conversation to score, in tokens."""

    checkpoint: Checkpoint
    chat: Chat
    max_length: int
    reference: Checkpoint | None  # of a policy


def _model(config: ScoreConfig) -> _Model:
    path, revision = local_model(config.model, config.revision)
    checkpoint = inspect(path, None if is_remote(config.model) else revision, config.family)
    if is_remote(config.model):
        checkpoint = replace(checkpoint, revision=revision)
    check_given(checkpoint.family, config.reference, config.dtype)
    chat = Chat.load(checkpoint.path, checkpoint.family)
    token_rows(checkpoint.family, chat)  # may raise ConfigError
    read_pattern(chat)  # may raise ConfigError
    if config.family is None:
        check_system(chat)
    if checkpoint.family.name == "mlp-classifier" and has_system(chat):
        logger.warning(
            "the chat template puts a system prompt of its own before conversations that have none; WorldPM was "
            "trained with an empty one: give --family worldpm for it"
        )
    _check_family(config, checkpoint)
    size, rows = num_ids(chat.tokenizer), _whole(checkpoint, "vocab_size")
    if size > rows:
        raise ConfigError(f"{checkpoint.path}: its tokenizer has {size} tokens, but its model {rows}")
    positions = _whole(checkpoint, "max_position_embeddings")
    if config.max_length is not None and config.max_length > positions:
        raise ConfigError(f"max-length: {config.max_length} is more than the model's {positions} positions")
    limits = (chat.model_max_length, checkpoint.family.max_length, positions)
    longest = config.max_length or min(limit for limit in limits if limit)
    return _Model(checkpoint, chat, longest, _reference(config, checkpoint))


def _reference(config: ScoreConfig, policy: Checkpoint) -> Checkpoint | None:
    if config.reference is None:
        return None
    path, revision = local_model(config.reference.model)
    checkpoint = inspect_reference(policy, path)
    logger.info("memory holds two models: the policy, and the reference model %s", config.reference.model)
    return replace(checkpoint, revision=revision) if is_remote(config.reference.model) else checkpoint


def _whole(checkpoint: Checkpoint, name: str) -> int:
    value = checkpoint.config.get(name)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(
            f"{checkpoint.path}/config.json: {name} is {value!r:.100}, not a positive whole number"
        )
    return value


def _check_family(config: ScoreConfig, checkpoint: Checkpoint) -> None:
    """Log the family and its rewards. Raises ConfigError if an option does not fit the family."""
    name, names = checkpoint.family.name, checkpoint.reward_names
    if checkpoint.family.text != "response" and config.truncate != "none":
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


def _job(config: ScoreConfig, model: _Model, layout: Layout, columns: dict[str, str], kept: pa.Schema) -> Job:
    checkpoint = model.checkpoint
    fingerprint = fingerprint_of(_identity(config, model, layout, columns))
    metadata: dict[str, Any] = {
        "model": config.model,
        "model_revision": checkpoint.revision,
        **_weights(config, model),
        "model_family": checkpoint.family.name,
        "dtype": config.dtype,
        "schema_version": SCHEMA_VERSION,
        "run_fingerprint": fingerprint,
    }
    if model.reference is not None:
        metadata["reference_model"] = config.reference_model
        metadata["reference_revision"] = model.reference.revision
    if checkpoint.family.gated:
        metadata["reward_transform_matrix"] = checkpoint.transform
    else:
        metadata["fixed_weights"] = checkpoint.coefficients
    steps = checkpoint.family.by_step
    return Job(
        output=config.output,
        model=config.model if checkpoint.revision else str(checkpoint.path),
        revision=checkpoint.revision,
        family=checkpoint.family,
        dtype=config.dtype,
        token_budget=config.token_budget,
        fixed_packs=config.fixed_packs,
        compile=config.compile,
        device=config.device,
        layout=layout,
        reading=_reading(config),
        unit_rows=config.unit_rows,
        max_length=model.max_length,
        truncate=config.truncate,
        special_tokens=config.special_tokens,
        fingerprint=fingerprint,
        scores=scores_schema(checkpoint.reward_names, kept, config.keep_text, metadata, steps),
        carried=columns,
        as_json=tuple(config.keep_json),
        keep_text=config.keep_text,
        partition_by=config.partition_by,
        reference=_found(config.reference, model.reference),
    )


def _found(reference: Reference | None, checkpoint: Checkpoint | None) -> Reference | None:
    """The reference model as every node finds it."""
    if reference is None or checkpoint is None:
        return None
    path = reference.model if checkpoint.revision else str(checkpoint.path)
    return replace(reference, model=path, revision=checkpoint.revision)


def _weights(config: ScoreConfig, model: _Model) -> dict[str, Any]:
    if config.reference is None or model.reference is None:
        return {"model_fingerprint": model.checkpoint.fingerprint}
    return identity_of_pair(model.checkpoint, model.reference, config.reference)


def _reading(config: ScoreConfig) -> Reading:
    return Reading(dict(config.role), config.tool_calls)


def _identity(config: ScoreConfig, model: _Model, layout: Layout, columns: dict[str, str]) -> dict[str, Any]:
    """The settings that rows, columns or units depend on; two runs can share an output only if these are equal."""
    as_json = {"keep_json": sorted(config.keep_json)} if config.keep_json else {}
    return as_json | {
        **_weights(config, model),
        "chat_fingerprint": model.chat.fingerprint,
        **identity_of(model.checkpoint.family),
        "dtype": config.dtype,
        "max_length": model.max_length,
        "truncate": config.truncate,
        "special_tokens": config.special_tokens,
        "layout": layout.record(),
        **_reading(config).recorded(),
        "keep": columns,
        "keep_text": config.keep_text,
        "partition_by": list(config.partition_by),
        "unit_rows": config.unit_rows,
        "schema_version": SCHEMA_VERSION,
    }


def _layout(
    seen: survey.Survey, config: ScoreConfig, model: _Model, columns: dict[str, str]
) -> tuple[Layout, tuple[str, ...]]:
    """The layout of the input, from the columns of all shards, and the columns that are not read."""
    layout = _detected(seen.found, config, model)
    survey.check(seen, layout)
    unread = survey.unread(seen, layout, columns.values())
    logger.info("layout %s: %s", layout.title, ", ".join(f"{k}={v}" for k, v in layout.columns.items()))
    logger.info("columns that are not read: %s", ", ".join(unread) or "none")
    return layout, tuple(unread)


def _detected(found: InputColumns, config: ScoreConfig, model: _Model) -> Layout:
    family = model.checkpoint.family
    step_end = family.step_end if family.by_step else None
    return detect(found, config.layout, config.column, config.winner, config.ignore, step_end)


def _kept_types(columns: dict[str, str], config: ScoreConfig, seen: list[kept_columns.Seen]) -> pa.Schema:
    kept = kept_columns.unify(columns, config.keep_json, seen)
    nested = [field for field in kept if field.name in config.partition_by and pa.types.is_nested(field.type)]
    if nested:
        raise ConfigError(f"partition-by: {nested[0].name} is {nested[0].type}, not one value")
    for column in dict.fromkeys(columns.values()):
        if without := [shard.uri for shard in seen if column not in shard.names]:
            logger.warning(
                "kept column %s is null for the %d shards that lack it, the first is %s",
                column,
                len(without),
                without[0],
            )
    return kept


@cache
def _versions() -> dict[str, str]:
    return {"armo-ray": __version__, **{name: version(name) for name in _VERSIONED}}


def _encode(schema: pa.Schema) -> str:
    text: str = schema.serialize().to_pybytes().hex()
    return text


def _decode(text: str | None) -> pa.Schema:
    assert text is not None, "open_run raises if _run.json lacks it"
    return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(text)))
