"""Finds the prompts of other datasets, which `armo-ray mine --exclude` leaves out: an exact anti-join on prompt_id."""

import json
from collections.abc import Iterable

import duckdb

from armo_ray.curate.job import CurationJob
from armo_ray.curate.scratch_files import scan_parquet, write_parquet
from armo_ray.errors import ConfigError
from armo_ray.outputs.database import database
from armo_ray.outputs.dataset import parts_of
from armo_ray.outputs.scores import literal
from armo_ray.storage import commits
from armo_ray.storage.json_files import digest_of
from armo_ray.storage.local_files import readable
from armo_ray.storage.parts import DATA, HIDDEN, SCORES
from armo_ray.storage.records import DamagedError, PartEntry
from armo_ray.storage.store import Store

_SCRATCH = "excluded"
_MOST_BYTES = 1 << 26  # of a JSON line


def find_parts(uris: Iterable[str]) -> list[str]:
    """URIs of the files with a column prompt_id of complete datasets: of mine or label, or outputs of score or embed.

    Raises ConfigError if one is not a complete dataset of that kind, or cannot be read.
    """
    found = []
    for store in {store.uri: store for store in map(Store, uris)}.values():
        parts = [
            f"{store.uri}/{part.path}"
            for part in _parts(store)
            if any(map(part.is_in, (DATA, SCORES, HIDDEN)))
        ]
        if not parts:
            raise ConfigError(f"exclude: {store.uri}: holds no rows of mine, label, score or embed")
        found += parts
    return found


def digest(uris: Iterable[str]) -> str:
    """What tells apart any two states of complete datasets. Raises ConfigError as `find_parts` does."""
    parts = [
        sorted(json.dumps(part.to_dict(), sort_keys=True) for part in _parts(Store(uri))) for uri in uris
    ]
    return digest_of(json.dumps(parts).encode())


def _parts(store: Store) -> list[PartEntry]:
    """All parts in the manifest of a dataset."""
    with commits.reading(store, "exclude: "):
        try:
            parts = parts_of(store)
        except DamagedError as error:
            raise ConfigError(f"exclude: {error}") from error
    if parts is None:
        raise ConfigError(
            f"exclude: {store.uri}: no {commits.SUCCESS}: the dataset is not complete, or is none"
        )
    return parts


def write_excluded(job: CurationJob, parts: list[str]) -> None:
    """Write the ids of all prompts in these files, sorted, as a scratch file."""
    with database(job.options) as con:
        ids = con.sql(f"SELECT DISTINCT prompt_id FROM ({_scan(parts)}) ORDER BY prompt_id").to_arrow_table()
    write_parquet(job.scratch, _SCRATCH, ids)


def _scan(parts: list[str]) -> str:
    """SQL that selects the prompt_id of every row."""
    selects = []
    lines = [literal(readable(uri)) for uri in parts if uri.endswith(".jsonl")]
    if lines:
        selects.append(
            f"SELECT prompt_id FROM read_json([{', '.join(lines)}], format = 'newline_delimited', "
            f"columns = {{prompt_id: 'VARCHAR'}}, maximum_object_size = {_MOST_BYTES}, "
            f"compression = 'uncompressed', hive_partitioning = false)"
        )
    tables = [literal(readable(uri)) for uri in parts if not uri.endswith(".jsonl")]
    if tables:
        selects.append(
            f"SELECT prompt_id FROM read_parquet([{', '.join(tables)}], hive_partitioning = false)"
        )
    return " UNION ALL ".join(selects)


def drop_excluded(con: duckdb.DuckDBPyConnection, job: CurationJob, bucket: int) -> int:
    """Delete the candidates of excluded prompts from the table `candidates` of a bucket; returns their prompts."""
    ids = f"SELECT prompt_id FROM {scan_parquet(job.scratch, [_SCRATCH])} WHERE {job.bucket(bucket).sql}"
    condition = f"prompt_id IN ({ids})"
    (prompts,) = con.execute(
        f"SELECT count(DISTINCT prompt_id) FROM candidates WHERE {condition}"
    ).fetchall()[0]
    con.execute(f"DELETE FROM candidates WHERE {condition}")
    return int(prompts)
