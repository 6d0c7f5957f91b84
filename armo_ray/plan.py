"""From a configuration to a job: everything that can be known, and refused, before Ray starts.

Imports neither torch nor ray.
"""

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, NamedTuple

import pyarrow as pa

from armo_ray import __version__, kept
from armo_ray.chat import Chat
from armo_ray.config import ScoreConfig
from armo_ray.engine.checkpoint import Checkpoint, inspect
from armo_ray.errors import ConfigError
from armo_ray.families import Family
from armo_ray.schema import RESERVED, SCHEMA_VERSION, scores_schema
from armo_ray.storage import commits, parts, readers, resume
from armo_ray.storage.filesystem import in_parallel, is_remote
from armo_ray.storage.models import local_model
from armo_ray.storage.shards import DAMAGE, Shard, find_shards
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span, cut
from armo_ray.text.layouts import Layout, detect

logger = logging.getLogger(__name__)

_SAMPLE_ROWS = 1000
_SAMPLED_SHARDS = 16  # of JSONL, whose types nothing but rows can tell
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
    unit_rows: int
    max_length: int
    truncate: str
    special_tokens: str
    fingerprint: str
    scores: pa.Schema  # of a part, partition columns included
    carried: dict[str, str]  # name in the scores -> column of the input
    as_json: tuple[str, ...]  # the names in the scores of those that are kept as JSON text
    keep_text: bool
    partition_by: tuple[str, ...]

    @property
    def columns(self) -> list[str]:
        """The input columns to read."""
        return list(dict.fromkeys((*self.layout.columns.values(), *self.carried.values())))


def prepare(config: ScoreConfig, write: bool = True) -> tuple[Job, list[Span]]:
    """Check model, input and output, and open the run. Raises ConfigError; nothing is scored yet.

    Without `write` all is checked alike, and nothing is created.
    """
    model = _model(config)
    store = Store(config.output)
    found = find_shards(config.input, each=config.days == 1)
    shards = [shard for shard in found if not shard.uri.startswith(store.uri + "/")]
    if not shards:
        raise ConfigError(f"output {config.output}: all of the input lies in it")
    parts.check_directories(store, shards)
    columns = _carried_columns(config, shards)
    layout, seen = _layout(shards, config), _seen(shards) if columns else []
    carried = _carried_types(columns, config, seen)
    logger.info("layout %s: %s", layout.kind, ", ".join(f"{k}={v}" for k, v in layout.columns.items()))
    details = {"config": config.model_dump(mode="json"), "versions": _versions(), "carried": _encode(carried)}
    run = commits.open_run(store, _identity(config, model, layout, columns), details, write)
    carried = _decode(run["carried"])  # of the first run: a later shard must not change a column's type
    kept.check(carried, columns, config.keep_json, seen)
    job = _job(config, model, layout, columns, carried)
    spans = cut(shards, job.fingerprint, config.unit_rows, layout.candidate_columns)
    standing = resume.standing(store, spans, job.fingerprint)
    resume.resolve(standing, store, shards, config.redo, config.forget)
    return job, spans


def prepare_dataset(config: ScoreConfig, seen: list[kept.Seen]) -> Job:
    """A job for rows like these that are read and written by somebody else; input and output are not used."""
    layout = detect(dict.fromkeys(name for one in seen for name in one.names), config.layout, config.column)
    columns = dict(config.keep) | dict(config.keep_json)
    carried = _carried_types(columns, config, seen)
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
        unit_rows=config.unit_rows,
        max_length=model.max_length,
        truncate=config.truncate,
        special_tokens=config.special_tokens,
        fingerprint=fingerprint,
        scores=scores_schema(checkpoint.reward_names, carried, config.keep_text, metadata, steps),
        carried=columns,
        as_json=tuple(config.keep_json),
        keep_text=config.keep_text,
        partition_by=config.partition_by,
    )


def _identity(config: ScoreConfig, model: _Model, layout: Layout, columns: dict[str, str]) -> dict[str, Any]:
    """What must be the same for two runs to share an output: all that rows, columns or units depend on."""
    as_json = {"keep_json": sorted(config.keep_json)} if config.keep_json else {}
    return as_json | {
        "model_fingerprint": model.checkpoint.fingerprint,
        "chat_fingerprint": model.chat.fingerprint,
        "family": model.checkpoint.family.name,
        "dtype": config.dtype,
        "max_length": model.max_length,
        "truncate": config.truncate,
        "special_tokens": config.special_tokens,
        "layout": {"kind": layout.kind, **layout.columns},
        "keep": columns,
        "keep_text": config.keep_text,
        "partition_by": list(config.partition_by),
        "unit_rows": config.unit_rows,
        "schema_version": SCHEMA_VERSION,
    }


def _layout(shards: list[Shard], config: ScoreConfig) -> Layout:
    """The layout, as the first shard that can be read has it."""
    failures: list[str] = []
    for shard in shards:
        try:
            names, _, _ = readers.sample(shard, _SAMPLE_ROWS)
        except DAMAGE as error:
            failures.append(f"{shard.uri}: {error}")
            continue
        if names:
            logger.info("layout told from %s", shard.uri)
            return detect(names, config.layout, config.column)
    told = f"; {len(failures)} cannot be read, the first: {failures[0]}" if failures else ""
    raise ConfigError(f"input: none of {len(shards)} shards has a row to tell the layout from{told}")


def _seen(shards: list[Shard]) -> list[kept.Seen]:
    """The schemas of all Parquet shards, and the first rows of some JSONL shards, of those that can be read."""
    lined = [shard for shard in shards if not shard.is_parquet]
    some = lined[:: -(-len(lined) // _SAMPLED_SHARDS)] if lined else []

    def look(shard: Shard) -> list[kept.Seen]:
        try:
            return [kept.Seen(shard.uri, *readers.sample(shard, _SAMPLE_ROWS))]
        except DAMAGE:  # its rows are rejected when it is read
            return []

    looked = in_parallel(look, [shard for shard in shards if shard.is_parquet or shard in some])
    return [one for found in looked for one in found if one.names]


def _carried_columns(config: ScoreConfig, shards: list[Shard]) -> dict[str, str]:
    """Kept columns, and those to partition by that nothing else provides."""
    if wrong := RESERVED.intersection(config.partition_by) - {"role"}:
        raise ConfigError(f"partition-by: {min(wrong)}: of the scores' own columns only role can be used")
    directories = [{name for name, _ in shard.partitions} for shard in shards]
    everywhere, somewhere = set.intersection(*directories), set.union(*directories)
    if mixed := sorted((somewhere - everywhere).intersection(config.partition_by)):
        raise ConfigError(f"partition-by: {mixed[0]} is a directory of some shards of the input only")
    keep = dict(config.keep) | dict(config.keep_json)
    if twice := sorted(somewhere.intersection(keep)):
        raise ConfigError(f"keep: {twice[0]} is a directory of the input, and of the scores, already")
    own = [name for name in config.partition_by if name not in {"role", *everywhere}]
    return {name: name for name in own} | keep


def _carried_types(columns: dict[str, str], config: ScoreConfig, seen: list[kept.Seen]) -> pa.Schema:
    if taken := sorted(RESERVED.intersection(columns)):
        raise ConfigError(
            f"keep: {taken[0]} is a column of the scores already; rename it: "
            f"--keep input_{taken[0]}={columns[taken[0]]}"
        )
    carried = kept.unify(columns, config.keep_json, seen)
    nested = [
        field for field in carried if field.name in config.partition_by and pa.types.is_nested(field.type)
    ]
    if nested:
        raise ConfigError(f"partition-by: {nested[0].name} is {nested[0].type}, not one value")
    for column in dict.fromkeys(columns.values()):
        if without := [one.uri for one in seen if column not in one.names]:
            logger.warning(
                "kept column %s is null in %d shards without it: %s", column, len(without), without[0]
            )
    return carried


def _versions() -> dict[str, str]:
    return {"armo-ray": __version__, **{name: version(name) for name in _VERSIONED}}


def _encode(schema: pa.Schema) -> str:
    text: str = schema.serialize().to_pybytes().hex()
    return text


def _decode(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(text)))
