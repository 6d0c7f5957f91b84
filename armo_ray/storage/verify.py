"""Checking an output: every part against its commit record, every record against the manifest."""

import io
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray.errors import ConfigError
from armo_ray.schema import REJECTS, recomputed
from armo_ray.storage import commits, parts
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.store import Store

# float32 rounding of a sum of 19 products of a transformed gate: measured 1e-6 on scores about 1
_TOLERANCE = 1e-4


def verify_output(uri: str) -> tuple[dict[str, int], list[str]]:
    """Re-read a whole output. Returns what was counted, and a line for each fault found.

    Raises ConfigError where there is no output at all.
    """
    store = Store(uri)
    if store.read_json(commits.RUN) is None:
        raise ConfigError(f"{uri}: no {commits.RUN}: not an output of armo-ray score")
    manifest = store.read_json(commits.SUCCESS)
    records = commits.read_commits(store)
    faults = _against_manifest(records, manifest) + _overlaps(records) + _strays(store, records)
    faults += [f"{source}: not all of its units are committed" for source in commits.unfinished(records)]
    for found in in_parallel(lambda record: _check_unit(store, record), records):
        faults += found
    totals = commits.totals(records)
    counts = {name: totals[name] for name in ("units", "candidates", "scored")}
    return counts | {"rejected": sum(totals["rejected"].values())}, faults


def _against_manifest(records: list[dict[str, Any]], manifest: dict[str, Any] | None) -> list[str]:
    if manifest is None:
        return [f"no {commits.SUCCESS}: the run has not finished; run it again"]
    listed = {part["path"]: part for part in manifest["parts"]}
    committed = {part["path"]: part for record in records for part in record["parts"]}
    paths = sorted(listed.keys() | committed.keys())
    faults = []
    if (totals := commits.totals(records)) != manifest["totals"]:
        faults.append(
            f"{commits.SUCCESS}: its totals are {manifest['totals']}, those of the commits {totals}"
        )
    return faults + [
        f"{path}: the manifest says {listed.get(path)}, the commits {committed.get(path)}"
        for path in paths
        if listed.get(path) != committed.get(path)
    ]


def _strays(store: Store, records: list[dict[str, Any]]) -> list[str]:
    """Parts that no commit names: left by a task that was stopped and never done again."""
    known = {store.path(part["path"]) for record in records for part in record["parts"]}
    found = [path for folder in (parts.SCORES, parts.REJECTS) for path in store.find(folder)]
    return [
        f"{path}: no commit names it, and who reads by a glob counts its rows: delete it"
        for path in found
        if path.endswith(".parquet") and path not in known and "/." not in path
    ]


def _overlaps(records: list[dict[str, Any]]) -> list[str]:
    """Units of one shard whose rows overlap: rows that were scored twice. Records come sorted."""
    return [
        f"{a['source']}: units {a['unit']} and {b['unit']} both hold row {b['first_row']}"
        for a, b in pairwise(records)
        if a["source"] == b["source"] and b["first_row"] < a["first_row"] + a["num_rows"]
    ]


def _check_unit(store: Store, record: dict[str, Any]) -> list[str]:
    faults: list[str] = []
    counted = {parts.SCORES: 0, parts.REJECTS: 0}
    for part in record["parts"]:
        try:
            content = store.read(part["path"])
            table = pq.read_table(io.BytesIO(content), partitioning=None)
        except (OSError, pa.ArrowException) as error:
            faults.append(f"{part['path']}: {error}")
            continue
        counted[part["path"].split("/")[0]] += table.num_rows
        if len(content) != part["bytes"] or table.num_rows != part["rows"]:
            faults.append(
                f"{part['path']}: {table.num_rows} rows in {len(content)} bytes, the commit says "
                f"{part['rows']} in {part['bytes']}"
            )
        check = _check_scores if part["path"].startswith(parts.SCORES) else _check_rejects
        faults += [f"{part['path']}: {fault}" for fault in check(table)]
    rejected = sum(record["rejected"].values())
    if counted[parts.SCORES] != record["scored"] or counted[parts.REJECTS] != rejected:
        faults.append(
            f"unit {record['unit']}: its parts hold {counted}, its record {record['scored']}, {rejected}"
        )
    if record["scored"] + rejected != record["candidates"]:
        faults.append(f"unit {record['unit']}: {record['candidates']} candidates, not all scored or rejected")
    return faults


def _check_scores(table: pa.Table) -> list[str]:
    faults = []
    if len(table["row_id"].unique()) != table.num_rows:
        faults.append("row ids that are not unique")
    if not np.allclose(recomputed(table), table["score"].to_numpy(), rtol=_TOLERANCE, atol=_TOLERANCE):
        faults.append("scores that are not the sum of rewards times coefficients")
    return faults


def _check_rejects(table: pa.Table) -> list[str]:
    return [] if table.schema.equals(REJECTS) else [f"unexpected schema {table.schema}"]
