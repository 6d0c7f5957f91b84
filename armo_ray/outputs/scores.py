"""Opens outputs of `armo-ray score`: their model, their parts, and their rows in DuckDB.

Only complete outputs are read, and of these only the parts that the manifest lists.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import name_of, quote
from armo_ray.model.families import HIDDEN
from armo_ray.outputs.partitions import Partitions, check_partitions, in_partitions, parse_partitions
from armo_ray.outputs.schema import OF_QUERIES, footer
from armo_ray.storage import commits
from armo_ray.storage.json_files import unit_of
from armo_ray.storage.local_files import Opened, readable
from armo_ray.storage.parts import NULL, REJECTS, SCORES, hive_values
from armo_ray.storage.records import Manifest, PartEntry, RunFile
from armo_ray.storage.store import Store

_NEEDED = ("identity.layout", "identity.keep_text")


@dataclass(frozen=True)
class Part:
    """A Parquet file of scores or rejects; `output` is the index of its output."""

    uri: str
    rows: int
    output: int
    directories: tuple[str, ...]  # names of the hive directories on the way to it
    digest: str | None = None  # of its bytes; None: not known


@dataclass(frozen=True)
class Listed:
    """An output with its _run.json and its parts, as its manifest or commit records list them."""

    uri: str
    run: RunFile
    parts: Sequence[PartEntry]


@dataclass(frozen=True)
class Scores:
    """Complete outputs of one model, read as one table."""

    outputs: tuple[str, ...]
    runs: tuple[RunFile, ...]  # the _run.json of each output
    parts: tuple[Part, ...]  # in the order of the outputs and their manifests
    rejects: tuple[Part, ...]
    metadata: Mapping[str, Any]  # from a footer: model, dtype, reward_transform_matrix, ...
    reward_names: tuple[str, ...]
    partitions: Partitions = ()  # those that were asked for

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def has_text(self) -> bool:
        """Whether every output was written with --keep-text."""
        return all(run.keep_text for run in self.runs)


def literal(text: str) -> str:
    """A string as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def open_scores(uris: Iterable[str], partition: Iterable[str] = ()) -> Scores:
    """Read manifests, commit records and footers, of all candidates or of those in some partitions.

    Raises ConfigError if an output does not exist, is damaged or incomplete, has no scores, or is of another model
    than the first, and if a partition cannot be parsed or is in none of the outputs.
    """
    partitions = parse_partitions(partition)
    listed = []
    for store in {store.uri: store for store in map(Store, uris)}.values():
        run, manifest = _manifest(store)
        if not any(part.is_in(SCORES) for part in manifest.parts):
            raise ConfigError(f"{store.uri}: no candidate was scored there")
        listed.append(Listed(store.uri, run, manifest.parts))
    return scores_of(listed, partitions)


def scores_of(outputs: Sequence[Listed], partitions: Partitions = ()) -> Scores:
    """Outputs as one table; an output may have no scores. Raises ConfigError if they are of different models."""
    if partitions:
        check_partitions([(output.uri, output.parts) for output in outputs], partitions)
        outputs = [replace(output, parts=_in_partitions(output, partitions)) for output in outputs]
    output_parts = [_parts(output, i, SCORES) for i, output in enumerate(outputs)]
    rejects = [part for i, output in enumerate(outputs) for part in _parts(output, i, REJECTS)]
    schemas = [_schema(parts[0]) for parts in output_parts if parts]
    for name in (name for schema in schemas for name in schema.names):
        if name.lower() in OF_QUERIES:  # of an output that was scored by an earlier version
            raise ConfigError(
                f"{', '.join(o.uri for o in outputs)}: has a column {name}, a name that queries use themselves: score "
                f"again, with --keep input_{name.strip('_')}={name}"
            )
    metadata = [footer(schema) for schema in schemas]
    check_models([o.uri for o, parts in zip(outputs, output_parts, strict=True) if parts], metadata)
    rewards = schemas[-1].field("rewards").type if schemas else pa.struct([])
    return Scores(
        outputs=tuple(output.uri for output in outputs),
        runs=tuple(output.run for output in outputs),
        parts=tuple(part for parts in output_parts for part in parts),
        rejects=tuple(rejects),
        metadata=metadata[0] if metadata else {},
        reward_names=tuple(rewards.field(i).name for i in range(rewards.num_fields)),
        partitions=partitions,
    )


def _in_partitions(output: Listed, partitions: Partitions) -> list[PartEntry]:
    """The parts of scores in some partitions, and the rejects of the units that have such parts.

    A unit without scores is where the directories of its shard say, which its rejects name.
    """
    scores = [part for part in output.parts if part.is_in(SCORES)]
    selected = [part for part in scores if in_partitions(part.path, partitions)]
    scored, within = ({unit_of(part.path) for part in parts} for parts in (scores, selected))
    for part in output.parts:
        unit = unit_of(part.path)
        if part.is_in(REJECTS) and (
            unit in within or (unit not in scored and _source_in(output, part, partitions))
        ):
            selected.append(part)
    return selected


def _source_in(output: Listed, rejects: PartEntry, partitions: Partitions) -> bool:
    with Opened().open(f"{output.uri.rstrip('/')}/{rejects.path}") as stream:
        sources = pq.read_table(stream, columns=["source"])["source"]
    return in_partitions(sources[0].as_py(), partitions)


def read_run_and_manifest(store: Store) -> tuple[RunFile, Manifest | None]:
    """The _run.json of an output, and its manifest if it is complete. Raises ConfigError if it is no output."""
    with commits.reading(store):
        run = commits.read_run(store, _NEEDED)
        check_scored(store, run)
        return run, commits.find_manifest(store, run)


def check_scored(store: Store, run: RunFile) -> None:
    """Raises ConfigError if an output holds hidden states alone."""
    if run.identity.get("family") == HIDDEN.name:
        raise ConfigError(
            f"{store.uri}: holds hidden states and no scores: armo-ray fit {store.uri} makes a reward model of them"
        )


def _manifest(store: Store) -> tuple[RunFile, Manifest]:
    run, manifest = read_run_and_manifest(store)
    if manifest is None:
        raise ConfigError(
            f"{store.uri}: no {commits.SUCCESS}: its run is not complete. "
            f"Run the same command again until it ends with status 0 or 3"
        )
    if manifest.parts_in is None:  # else the parts are those of the commits already
        commits.check_manifest(store, manifest, commits.read_log(store, run))
    return run, manifest


def _parts(listed: Listed, output: int, folder: str) -> list[Part]:
    root = listed.uri.rstrip("/")
    return [
        Part(f"{root}/{part.path}", part.rows, output, _directories(part.path), part.digest)
        for part in listed.parts
        if part.is_in(folder)
    ]


def _directories(path: str) -> tuple[str, ...]:
    """Names of the hive directories in a path relative to the output; directories above the output do not count."""
    return tuple(name for name, _ in hive_values(path))


def _schema(part: Part) -> pa.Schema:
    try:
        with Opened().open(part.uri) as stream:
            return pq.ParquetFile(stream).schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{part.uri}: cannot be read: {error}. Check it with armo-ray verify") from error


def check_models(outputs: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConfigError if the footers of outputs are of different models. Takes one footer's metadata per output."""
    for output, other in zip(outputs[1:], metadata[1:], strict=True):
        for key in ("model_fingerprint", "dtype"):
            if other[key] != metadata[0][key]:
                models = [
                    f"{m['model']} ({m['dtype']}, {m['model_fingerprint']})" for m in (metadata[0], other)
                ]
                raise ConfigError(
                    f"scores of two models cannot be compared: {outputs[0]} is of {models[0]}, {output} of {models[1]}"
                )


def scan(parts: Iterable[Part], numbered: bool = False) -> str:
    """SQL that selects the rows of parts, with hive directories as string columns.

    If numbered, also selects __part, __row and __output: the 0-based indices of the row's part among the parts, of the
    row in its part, and of its output among the outputs.
    """
    selects, first = [], 0
    for (output, directories), group in groupby(parts, key=lambda part: (part.output, part.directories)):
        files = [literal(readable(part.uri)) for part in group]
        numbers = f", file_index + {first} AS __part, file_row_number AS __row, {output} AS __output"
        place = numbers if numbered else ""
        values = "".join(
            f", url_decode(nullif(split_part(split_part(__file, '/', -{k}), '=', 2), '{NULL}')) AS {quote(name)}"
            for k, name in enumerate(reversed(directories), 2)  # the last component of the path is the file
        )
        selects.append(
            f"SELECT * EXCLUDE (__file){values}{place} FROM read_parquet([{', '.join(files)}], "
            f"hive_partitioning = false, filename = '__file')"
        )
        first += len(files)
    return " UNION ALL BY NAME ".join(selects)


def check_counted(con: duckdb.DuckDBPyConnection, scores: Scores, option: str) -> None:
    """Raises ConfigError if an option needs tokens of responses and the outputs have none, as those of a judge."""
    some = f"SELECT 1 FROM ({scan(scores.parts)}) WHERE num_response_tokens IS NOT NULL LIMIT 1"
    if scores.parts and not con.execute(some).fetchall():
        raise ConfigError(
            f"{option}: {scores.outputs[0]} has no token counts, because a judge has no tokenizer. Leave it out, or "
            f"keep a column with lengths of your own (armo-ray judge --keep) and name it in an expression"
        )


def columns_of(con: duckdb.DuckDBPyConnection, scores: Scores) -> dict[str, str]:
    """SQL types of the columns that all outputs have, and of their struct fields, by their names in expressions."""
    return {name_of(*path): kind for path, kind in paths_of(con, scores).items()}


def paths_of(con: duckdb.DuckDBPyConnection, scores: Scores) -> dict[tuple[str, ...], str]:
    """Like `columns_of`, by path: (column,), or (struct column, field)."""
    samples = {(part.output, part.directories): part for part in scores.parts}.values()
    everywhere = set.intersection(*(set(con.sql(scan([part])).columns) for part in samples))
    relation = con.sql(scan(samples))
    types: dict[tuple[str, ...], str] = {}
    for name, kind in zip(relation.columns, relation.types, strict=True):
        if name in everywhere:
            types[name,] = str(kind)
            if kind.id == "struct":
                types |= {(name, field): str(inner) for field, inner in kind.children}
    return types
