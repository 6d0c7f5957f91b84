"""What is committed of outputs: their parts and the records of their units."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from armo_ray.outputs.partitions import parse_partitions, units_in_partitions
from armo_ray.outputs.scores import Listed, Scores, read_run_and_manifest, scores_of
from armo_ray.storage import commits
from armo_ray.storage.records import CommitRecord, Totals
from armo_ray.storage.store import Store


@dataclass(frozen=True)
class Committed:
    """What is committed of some outputs."""

    scores: Scores
    records: Sequence[Mapping[str, Any]]  # as in their files
    runs: Sequence[Mapping[str, Any]]  # the _run.json of each output
    totals: Mapping[str, Any]
    complete: bool


def open_committed(uris: Iterable[str], partition: Iterable[str] = ()) -> Committed:
    """Read commit records and footers, of all candidates or of those in some partitions.

    Raises ConfigError if one is not an output of score or has another model, and if a partition cannot be read alone.
    """
    partitions = parse_partitions(partition)
    listed: list[Listed] = []
    records: list[CommitRecord] = []
    complete = True
    for store in {store.uri: store for store in map(Store, uris)}.values():
        run, manifest = read_run_and_manifest(store)
        committed = commits.read_commits(store, run=run)
        listed.append(Listed(store.uri, run, [part for record in committed for part in record.parts]))
        records += units_in_partitions(committed, partitions)
        complete &= manifest is not None
    return Committed(
        scores_of(listed, partitions),
        [record.to_dict() for record in records],
        [output.run.to_dict() for output in listed],
        Totals.of(records).to_dict(),
        complete,
    )
