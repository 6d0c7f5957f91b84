"""From a configuration to a job: everything that can be known, and refused, before Ray starts.

Imports neither torch nor ray.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from armo_ray import __version__
from armo_ray.chat import Chat
from armo_ray.config import ScoreConfig
from armo_ray.engine.checkpoint import Checkpoint, inspect
from armo_ray.errors import ConfigError
from armo_ray.schema import RESERVED, SCHEMA_VERSION, scores_schema
from armo_ray.storage import commits, readers
from armo_ray.storage.filesystem import Store
from armo_ray.storage.shards import DAMAGE, Shard, Span, cut, find_shards
from armo_ray.text.layouts import Layout, detect

logger = logging.getLogger(__name__)

_SAMPLE_ROWS = 1000
_VERSIONED = ("ray", "torch", "transformers", "tokenizers", "pyarrow")


@dataclass(frozen=True)
class Job:
    """What every worker needs to know; travels to them with each task."""

    output: str
    model_path: str
    dtype: str
    token_budget: int | None
    fixed_packs: bool
    layout: Layout
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


def prepare(config: ScoreConfig) -> tuple[Job, list[Span]]:
    """Check model, input and output, and open the run. Raises ConfigError; nothing is scored yet."""
    checkpoint, limit = _model(config)
    store = Store(config.output)
    shards = find_shards(config.input)
    if inside := [shard.uri for shard in shards if shard.uri.startswith(store.uri + "/")]:
        raise ConfigError(f"output {config.output}: the input {inside[0]} lies in it")
    layout, carried = _columns(shards, config)
    logger.info("layout %s: %s", layout.kind, ", ".join(f"{k}={v}" for k, v in layout.columns.items()))
    identity = _identity(config, checkpoint, layout, limit)
    details = {"config": config.model_dump(mode="json"), "versions": _versions(), "carried": _encode(carried)}
    run = commits.open_run(store, identity, details)
    carried = _decode(run["carried"])  # of the first run: a later shard must not change a column's type
    job = _job(config, checkpoint, layout, limit, carried)
    return job, cut(shards, job.fingerprint, config.unit_rows, layout.candidate_columns)


def prepare_dataset(config: ScoreConfig, schema: pa.Schema) -> Job:
    """A job for rows of this schema that are read and written by somebody else; input and output are not used."""
    checkpoint, limit = _model(config)
    layout = detect(schema.names, config.layout, config.column)
    carried = _carried_types(dict(config.keep), "the dataset", schema.names, schema, [])
    return _job(config, checkpoint, layout, limit, carried)


def _model(config: ScoreConfig) -> tuple[Checkpoint, int]:
    """The checkpoint, found whole, and the longest conversation it is asked to score."""
    checkpoint = inspect(config.model, config.revision)
    chat = Chat.load(checkpoint.path)
    size, rows = chat.tokenizer.get_vocab_size(), int(checkpoint.config["vocab_size"])
    if size > rows:
        raise ConfigError(f"{checkpoint.path}: its tokenizer has {size} tokens, its model {rows}")
    positions = int(checkpoint.config["max_position_embeddings"])
    if config.max_length is not None and config.max_length > positions:
        raise ConfigError(f"max-length: {config.max_length} is more than the model's {positions} positions")
    return checkpoint, config.max_length or min(chat.model_max_length or positions, positions)


def _job(config: ScoreConfig, checkpoint: Checkpoint, layout: Layout, limit: int, carried: pa.Schema) -> Job:
    identity = _identity(config, checkpoint, layout, limit)
    fingerprint = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()
    metadata = {
        "model": config.model,
        "model_revision": checkpoint.revision,
        "model_fingerprint": checkpoint.fingerprint,
        "dtype": config.dtype,
        "reward_transform_matrix": checkpoint.read("reward_transform_matrix").tolist(),
        "schema_version": SCHEMA_VERSION,
        "run_fingerprint": fingerprint,
    }
    return Job(
        output=config.output,
        model_path=str(checkpoint.path),
        dtype=config.dtype,
        token_budget=config.token_budget,
        fixed_packs=config.fixed_packs,
        layout=layout,
        unit_rows=config.unit_rows,
        max_length=limit,
        truncate=config.truncate,
        special_tokens=config.special_tokens,
        fingerprint=fingerprint,
        scores=scores_schema(checkpoint.reward_names, carried, config.keep_text, metadata),
        carried={name: config.keep.get(name, name) for name in carried.names},
        keep_text=config.keep_text,
        partition_by=config.partition_by,
    )


def _identity(config: ScoreConfig, checkpoint: Checkpoint, layout: Layout, limit: int) -> dict[str, Any]:
    """What must be the same for two runs to share an output: all that rows, columns or units depend on."""
    return {
        "model_fingerprint": checkpoint.fingerprint,
        "dtype": config.dtype,
        "max_length": limit,
        "truncate": config.truncate,
        "special_tokens": config.special_tokens,
        "layout": {"kind": layout.kind, **layout.columns},
        "keep": dict(config.keep),
        "keep_text": config.keep_text,
        "partition_by": list(config.partition_by),
        "unit_rows": config.unit_rows,
        "schema_version": SCHEMA_VERSION,
    }


def _columns(shards: list[Shard], config: ScoreConfig) -> tuple[Layout, pa.Schema]:
    """The layout, and the types of the carried columns, as the first shard that can be read has them."""
    failures: list[str] = []
    for shard in shards:
        try:
            names, schema, rows = readers.sample(shard, _SAMPLE_ROWS)
        except DAMAGE as error:
            failures.append(f"{shard.uri}: {error}")
            continue
        if names:
            layout = detect(names, config.layout, config.column)
            return layout, _carried_types(_carried_columns(config, shard), shard.uri, names, schema, rows)
    told = f"; {len(failures)} cannot be read, the first: {failures[0]}" if failures else ""
    raise ConfigError(f"input: none of {len(shards)} shards has a row to tell the layout from{told}")


def _carried_columns(config: ScoreConfig, shard: Shard) -> dict[str, str]:
    """Kept columns, and those to partition by that nothing else provides."""
    if wrong := RESERVED.intersection(config.partition_by) - {"role"}:
        raise ConfigError(
            f"partition-by: {', '.join(wrong)}: of the scores' own columns only role can be used"
        )
    provided = {"role", *dict(shard.partitions)}
    return {name: name for name in config.partition_by if name not in provided} | dict(config.keep)


def _carried_types(
    carried: dict[str, str],
    source: str,
    names: list[str],
    schema: pa.Schema | None,
    rows: list[dict[str, Any]],
) -> pa.Schema:
    fields = []
    for name, column in carried.items():
        if name in RESERVED:
            raise ConfigError(
                f"keep: {name} is a column of the scores; keep it under another name: NAME={column}"
            )
        if column not in names:
            raise ConfigError(f"keep: no column {column} in {source}; it has {', '.join(names)}")
        if schema is not None:
            fields.append(pa.field(name, schema.field(column).type))
            continue
        try:
            found = pa.array([row.get(column) for row in rows]).type
        except pa.ArrowException as error:
            raise ConfigError(f"keep: column {column} of {source} has no one type: {error}") from error
        fields.append(pa.field(name, pa.string() if pa.types.is_null(found) else found))
    return pa.schema(fields)


def _versions() -> dict[str, str]:
    return {"armo-ray": __version__, **{name: version(name) for name in _VERSIONED}}


def _encode(schema: pa.Schema) -> str:
    text: str = schema.serialize().to_pybytes().hex()
    return text


def _decode(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(text)))
