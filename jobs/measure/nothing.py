"""Execute the units of an input in the graph of a run, but with steps that do nothing: what Ray itself costs.

python -m jobs.measure.nothing --input SHARD... --model DIR [--unit-rows 2]

Reads only the footers of the input, and writes nothing but the `_run.json` of a temporary output.
"""

import argparse
import pickle
import tempfile
from collections.abc import Iterator

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from armo_ray.cluster.connect import RETRIES, connected, remote_arguments
from armo_ray.score import graph
from armo_ray.score.config import load_config
from armo_ray.score.job import prepare
from armo_ray.score.pipeline import IN_FLIGHT
from armo_ray.score.replicas import ACTOR_CPUS


class Idle:
    """In the place of a replica."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        return batch


def read(batch: pa.Table) -> Iterator[pa.Table]:
    for pickled in batch["span"].to_pylist():
        for unit in pickle.loads(pickled).units:
            yield pa.table({"unit": [unit.id]})


def on_idle_actor(ds: ray.data.Dataset) -> ray.data.Dataset:
    """The step of a pool like that of one replica."""
    with remote_arguments():
        return ds.map_batches(
            Idle,
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=1, max_size=1, initial_size=1, max_tasks_in_flight_per_actor=IN_FLIGHT
            ),
            max_restarts=-1,
            max_task_retries=RETRIES,
            num_cpus=ACTOR_CPUS,
        )


def write(batch: pa.Table) -> pa.Table:
    return graph.result(batch["unit"][0].as_py())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--input", nargs="+", required=True)
    parser.add_argument("--unit-rows", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as output:
        options = vars(args) | {"output": output}
        _, spans = prepare(load_config(None, options))
        with connected():
            results = list(graph.results(spans, read, on_idle_actor, write))
    units = [unit.id for span in spans for unit in span.units]
    assert sorted(results) == sorted(units), f"{len(results)} results of {len(units)} units"


if __name__ == "__main__":
    main()
