"""What holds of every whole output, whatever happened while it was made."""

import io
import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from armo_ray import coefficients, vectors
from armo_ray.outputs.schema import recomputed
from armo_ray.storage.store import Store
from armo_ray.verify.output import verify_output

MEASURED = {
    "score",
    "rewards",
    "gating",
    "step_scores",
    "hidden_last",
}  # equal up to rounding; all else to the letter


def check_whole(output: Any) -> None:
    """Row ids are unique, commits, parts and manifest agree, every candidate is scored or rejected, and the lines of
    README that read scores work."""
    store = Store(str(output))
    counts, faults = verify_output(store.uri)
    assert faults == []
    assert counts["scored"] + counts["rejected"] == counts["candidates"]
    manifest = store.read_json("_SUCCESS") or {}
    records = [json.loads(store.read(f"_commits/{name}")) for name in store.list_names("_commits")]
    written = {part["path"]: part for record in records for part in record["parts"]}
    assert {part["path"]: part for part in manifest["parts"]} == written
    found = [path.removeprefix(f"{store.root}/") for path in _files(store)]
    assert sorted(found) == sorted(written)
    ids: list[str] = []
    for path in sorted(written):
        if path.startswith(("scores/", "hidden/")):
            table = pq.read_table(io.BytesIO(store.read(path)), partitioning=None)
            ids += table["row_id"].to_pylist()
            if "score" in table.column_names:
                _check_scores(table)
    assert len(set(ids)) == len(ids) == counts["scored"]


def _files(store: Store) -> list[str]:
    return [
        path
        for folder in ("scores", "hidden", "prompts", "rejects")
        for path in store.find(folder)
        if not path.rsplit("/", 1)[-1].startswith(".")
    ]


def _check_scores(table: Any) -> None:
    if b'"ensemble"' not in table.schema.metadata[b"armo_ray"]:
        sums = (vectors(table) * coefficients(table)).sum(1)
        if table.schema.metadata[b"armo_ray"].find(b"length_penalty") < 0:
            assert np.allclose(sums, table["score"], atol=1e-5)
    assert np.allclose(recomputed(table), table["score"], rtol=1e-5, atol=1e-5)


def rows_of_output(output: Any, folder: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of scores or rejects by source, row and candidate, directories included."""
    store = Store(str(output))
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in store.find(folder):
        table = pq.read_table(io.BytesIO(store.read(path.removeprefix(f"{store.root}/"))), partitioning=None)
        directories = [part for part in path.split("/") if "=" in part]
        for row in table.to_pylist():
            key = (row["source"], row["source_row"], row["candidate"])
            assert key not in rows
            rows[key] = row | {"directories": directories}
    return rows


def check_equal(output: Any, expected: Any) -> None:
    """The same rows as in an undisturbed output: everything but what was measured to the letter."""
    for folder in ("scores", "hidden", "rejects"):
        found, wanted = rows_of_output(output, folder), rows_of_output(expected, folder)
        assert found.keys() == wanted.keys()
        for key, row in wanted.items():
            same = {name: value for name, value in row.items() if name not in MEASURED}
            assert {name: found[key][name] for name in same} == same
            for name in MEASURED & row.keys():
                assert np.allclose(_flat(found[key][name]), _flat(row[name]), atol=1e-5)


def _flat(value: Any) -> list[float]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, bytes):  # a hidden state in float32
        value = np.frombuffer(value, np.float32)
    return [0.0] if value is None else np.ravel(value).tolist()
