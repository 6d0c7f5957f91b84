"""The graph of units gives what `write` returned of every unit, whatever the spans hold."""

import pickle
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import ray.data
from ray.data import ActorPoolStrategy

from armo_ray.score import graph
from armo_ray.storage.shards import Shard
from armo_ray.storage.units import Span


@pytest.mark.nightly
def test_every_unit_gives_its_result_once_and_a_span_without_units_none(local_ray: str) -> None:
    units = {"/none.jsonl": 0, "/one.jsonl": 1, "/many.jsonl": 40}

    def read(batch: pa.Table) -> Iterator[pa.Table]:
        uri = pickle.loads(batch["span"][0].as_py()).shard.uri
        for number in range(units[uri]):
            yield pa.table({"unit": [f"{uri} {number}"]})

    class Replica:
        def __call__(self, batch: pa.Table) -> pa.Table:
            return batch

    def on_actors(ds: ray.data.Dataset) -> ray.data.Dataset:
        pool: Any = ActorPoolStrategy(size=1)
        return ds.map_batches(Replica, batch_size=1, batch_format="pyarrow", compute=pool, num_cpus=0.25)

    def write(batch: pa.Table) -> pa.Table:
        return graph.result(batch["unit"][0].as_py())

    spans = [Span(Shard(uri, 1, "1-1", ())) for uri in units]
    found = list(graph.results(spans, read, on_actors, write))
    assert sorted(found) == sorted(
        f"{uri} {number}" for uri, count in units.items() for number in range(count)
    )
