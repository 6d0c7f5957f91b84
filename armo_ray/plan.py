"""From a configuration to a job: everything that can be known, and refused, before Ray starts.

Imports neither torch nor ray.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, NamedTuple

import pyarrow as pa

from armo_ray import __version__
from armo_ray.chat import Chat
from armo_ray.config import ScoreConfig
from armo_ray.engine.checkpoint import Checkpoint, inspect
from armo_ray.errors import ConfigError
from armo_ray.families import Family
from armo_ray.schema import RESERVED, SCHEMA_VERSION, scores_schema
from armo_ray.storage import commits, parts, readers, resume
from armo_ray.storage.filesystem import is_remote
from armo_ray.storage.models import local_model
from armo_ray.storage.shards import DAMAGE, Shard, find_shards
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span, cut
from armo_ray.text.layouts import Layout, detect
from armo_ray.text.messages import Reading

logger = logging.getLogger(__name__)

_SAMPLE_ROWS = 1000
_VERSIONED = ("ray", "torch", "transformers", "tokenizers", "pyarrow")


@dataclass(frozen=True)
class Job:
    """What every worker needs to know; travels to them with each task."""

    output: str
    model: str  # a directory that every node sees, or a URI or hub id with its revision
    revision: str | None
    family: Family
    dtype: str
    token_budget: int | None
    fixed_packs: bool
    compile: bool
    device: str | None
    layout: Layout
    reading: Reading
    unit_rows: int
    max_length: int
    truncate: str
    special_tokens: str
    fingerprint: str
    scores: pa.Schema  # of a part, partition columns included
    carried: dict[str, str]  # name in the scores -> column of the input
    keep_text: bool
    partition_by: tuple[str, ...]

    @property
    def columns(self) -> list[str]:
        """The input columns to read."""
        return list(dict.fromkeys((*self.layout.columns.values(), *self.carried.values())))


Check = Callable[["Job", list[Span], ScoreConfig], None]


def prepare(config: ScoreConfig, write: bool = True, check: Check | None = None) -> tuple[Job, list[Span]]:
    """Check model, input and output, and open the run. Raises ConfigError; nothing is scored yet.

    Without `write` all is checked alike, and nothing is created. `check` may refuse the run before that as well.
    """
    model = _model(config)
    store = Store(config.output)
    found = find_shards(config.input, each=config.days == 1)
    shards = [shard for shard in found if not shard.uri.startswith(store.uri + "/")]
    if not shards:
        raise ConfigError(f"output {config.output}: all of the input lies in it")
    parts.check_directories(store, shards)
    columns = _carried_columns(config, shards)
    layout, carried = _layout(shards, config, columns)
    logger.info("layout %s: %s", layout.kind, ", ".join(f"{k}={v}" for k, v in layout.columns.items()))
    details = {"config": config.model_dump(mode="json"), "versions": _versions(), "carried": _encode(carried)}
    identity = _identity(config, model, layout, columns)
    run = commits.open_run(store, identity, details, write and check is None)
    carried = _decode(run["carried"])  # of the first run: a later shard must not change a column's type
    job = _job(config, model, layout, columns, carried)
    spans = cut(shards, job.fingerprint, config.unit_rows, layout.candidate_columns)
    standing = resume.standing(store, spans, job.fingerprint)
    resume.resolve(standing, store, shards, config.redo, config.forget)
    if check is not None:
        check(job, spans, config)
        commits.open_run(store, identity, details, write)
    return job, spans


def prepare_dataset(config: ScoreConfig, schema: pa.Schema) -> Job:
    """A job for rows of this schema that are read and written by somebody else; input and output are not used."""
    layout = detect(schema.names, config.layout, config.column)
    columns = dict(config.keep)
    carried = _carried_types(columns, "the dataset", schema.names, schema, [])
    return _job(config, _model(config), layout, columns, carried)


class _Model(NamedTuple):
    """A checkpoint, found whole, its chat, and the longest conversation it is asked to score."""

    checkpoint: Checkpoint
    chat: Chat
    max_length: int


def _model(config: ScoreConfig) -> _Model:
    path, revision = local_model(config.model, config.revision)
    checkpoint = inspect(path, None if is_remote(config.model) else revision, config.family)
    if is_remote(config.model):
        checkpoint = replace(checkpoint, revision=revision)
    chat = Chat.load(checkpoint.path, checkpoint.family)
    _check_family(config, checkpoint)
    size, rows = chat.tokenizer.get_vocab_size(), int(checkpoint.config["vocab_size"])
    if size > rows:
        raise ConfigError(f"{checkpoint.path}: its tokenizer has {size} tokens, its model {rows}")
    positions = int(checkpoint.config["max_position_embeddings"])
    if config.max_length is not None and config.max_length > positions:
        raise ConfigError(f"max-length: {config.max_length} is more than the model's {positions} positions")
    known = (chat.model_max_length, checkpoint.family.max_length, positions)
    return _Model(checkpoint, chat, config.max_length or min(limit for limit in known if limit))


def _check_family(config: ScoreConfig, checkpoint: Checkpoint) -> None:
    """Refuse options that the family cannot have, and say what it is."""
    name, names = checkpoint.family.name, checkpoint.reward_names
    if checkpoint.family.text != "answer" and config.truncate != "none":
        raise ConfigError(f"truncate: the family {name} reads prompt and answer as one text; use none")
    if checkpoint.family.text == "pairs" and config.dtype == "fp8":
        raise ConfigError(f"dtype: fp8 is not compared with bfloat16 for the family {name}; use bfloat16")
    mean = "; the score is their mean" if len(names) > 1 and not checkpoint.family.gated else ""
    told = ", ".join(names) if len(names) < 7 else f"{names[0]} and {len(names) - 1} others"
    logger.info("model family %s: rewards %s%s", name, told, mean)


def _job(
    config: ScoreConfig, model: _Model, layout: Layout, columns: dict[str, str], carried: pa.Schema
) -> Job:
    checkpoint = model.checkpoint
    identity = json.dumps(_identity(config, model, layout, columns), sort_keys=True)
    fingerprint = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    metadata: dict[str, Any] = {
        "model": config.model,
        "model_revision": checkpoint.revision,
        "model_fingerprint": checkpoint.fingerprint,
        "model_family": checkpoint.family.name,
        "dtype": config.dtype,
        "schema_version": SCHEMA_VERSION,
        "run_fingerprint": fingerprint,
    }
    if checkpoint.family.gated:
        metadata["reward_transform_matrix"] = checkpoint.transform
    else:
        metadata["fixed_weights"] = checkpoint.coefficients
    steps = checkpoint.family.text == "steps"
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
        scores=scores_schema(checkpoint.reward_names, carried, config.keep_text, metadata, steps),
        carried=columns,
        keep_text=config.keep_text,
        partition_by=config.partition_by,
    )


def _reading(config: ScoreConfig) -> Reading:
    return Reading(dict(config.role), config.tool_calls)


def _identity(config: ScoreConfig, model: _Model, layout: Layout, columns: dict[str, str]) -> dict[str, Any]:
    """What must be the same for two runs to share an output: all that rows, columns or units depend on."""
    return {
        "model_fingerprint": model.checkpoint.fingerprint,
        "chat_fingerprint": model.chat.fingerprint,
        "family": model.checkpoint.family.name,
        "dtype": config.dtype,
        "max_length": model.max_length,
        "truncate": config.truncate,
        "special_tokens": config.special_tokens,
        "layout": {"kind": layout.kind, **layout.columns},
        **_reading(config).recorded(),
        "keep": columns,
        "keep_text": config.keep_text,
        "partition_by": list(config.partition_by),
        "unit_rows": config.unit_rows,
        "schema_version": SCHEMA_VERSION,
    }


def _layout(shards: list[Shard], config: ScoreConfig, columns: dict[str, str]) -> tuple[Layout, pa.Schema]:
    """The layout, and the types of the carried columns, as the first shard that can be read has them."""
    failures: list[str] = []
    for shard in shards:
        try:
            names, schema, rows = readers.sample(shard, _SAMPLE_ROWS)
        except DAMAGE as error:
            failures.append(f"{shard.uri}: {error}")
            continue
        if names:
            logger.info("layout told from %s", shard.uri)
            layout = detect(names, config.layout, config.column)
            carried = _carried_types(columns, shard.uri, names, schema, rows)
            nested = [f.name for f in carried if f.name in config.partition_by and pa.types.is_nested(f.type)]
            if nested:
                raise ConfigError(
                    f"partition-by: {nested[0]} is {carried.field(nested[0]).type}, not one value"
                )
            return layout, carried
    told = f"; {len(failures)} cannot be read, the first: {failures[0]}" if failures else ""
    raise ConfigError(f"input: none of {len(shards)} shards has a row to tell the layout from{told}")


def _carried_columns(config: ScoreConfig, shards: list[Shard]) -> dict[str, str]:
    """Kept columns, and those to partition by that nothing else provides."""
    if wrong := RESERVED.intersection(config.partition_by) - {"role"}:
        raise ConfigError(f"partition-by: {min(wrong)}: of the scores' own columns only role can be used")
    directories = [{name for name, _ in shard.partitions} for shard in shards]
    everywhere, somewhere = set.intersection(*directories), set.union(*directories)
    if mixed := sorted((somewhere - everywhere).intersection(config.partition_by)):
        raise ConfigError(f"partition-by: {mixed[0]} is a directory of some shards of the input only")
    if twice := sorted(somewhere.intersection(config.keep)):
        raise ConfigError(f"keep: {twice[0]} is a directory of the input, and of the scores, already")
    own = [name for name in config.partition_by if name not in {"role", *everywhere}]
    return {name: name for name in own} | dict(config.keep)


def _carried_types(
    carried: dict[str, str],
    source: str,
    names: list[str],
    schema: pa.Schema | None,
    rows: list[dict[str, Any]],
) -> pa.Schema:
    fields = []
    for name, column in carried.items():
        if column not in names:
            raise ConfigError(
                f"keep or partition-by: no column {column} in {source}; it has {', '.join(names)}"
            )
        if name in RESERVED:
            raise ConfigError(
                f"keep: {name} is a column of the scores already; rename it: --keep input_{name}={column}"
            )
        if schema is not None:
            fields.append(pa.field(name, schema.field(column).type))
            continue
        try:
            found = pa.array([row.get(column) for row in rows]).type
        except pa.ArrowException as error:
            raise ConfigError(f"keep: column {column} of {source} has no one type: {error}") from error
        if pa.types.is_null(found):
            raise ConfigError(
                f"keep: column {column} is null in the first {len(rows)} rows of {source}: its type cannot be told"
            )
        fields.append(pa.field(name, found))
    return pa.schema(fields)


def _versions() -> dict[str, str]:
    return {"armo-ray": __version__, **{name: version(name) for name in _VERSIONED}}


def _encode(schema: pa.Schema) -> str:
    text: str = schema.serialize().to_pybytes().hex()
    return text


def _decode(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(text)))
