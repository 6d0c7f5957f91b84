"""What is left to do of an input: exact if footers and commit records have the counts, else from a sample."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from armo_ray.plan.intervals import Figure, exact, ratio, total
from armo_ray.plan.sample import Sample
from armo_ray.score.job import ModelJob
from armo_ray.storage import commits
from armo_ray.storage.records import CommitRecord, Totals
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span, unit_id


class Work(NamedTuple):
    """Units, rows, candidates and tokens left to do. `counted` says where rows and candidates come from:
    the "footers" of Parquet, the "sample", or "all" if every row was read."""

    counted: str
    units: Figure
    rows: Figure
    candidates: Figure
    tokens: Figure  # of conversations, each counted whole
    computed: Figure  # that go through the model


def work(left: Sequence[Span], sample: Sample, job: ModelJob, store: Store) -> Work:
    """What is left to do in the spans, from their footers and a sample of them."""
    done = _done(left, job, store)
    finished = Totals.of(done)
    rows, candidates = total(sample.strata, "rows"), total(sample.strata, "candidates")
    counted = "all" if all(stratum.complete for stratum in sample.strata) else "sample"
    if sample.exact and all(span.shard.is_parquet for span in left):
        units = [unit for span in left for unit in span.units]
        rows = exact(sum(unit.num_rows for unit in units))
        candidates, counted = exact(sum(unit.candidates for unit in units)), "footers"
    return Work(
        counted=counted,
        units=_units(left, sample, job),
        rows=rows.minus(sum(record.num_rows for record in done)),
        candidates=candidates.minus(finished.candidates),
        tokens=total(sample.strata, "tokens").minus(finished.num_tokens),
        computed=total(sample.strata, "computed").minus(finished.computed_tokens),
    )


def _done(left: Sequence[Span], job: ModelJob, store: Store) -> list[CommitRecord]:
    """The commit records of unfinished JSONL shards: the sample covers these shards as a whole."""
    units = [unit_id(s.shard, job.fingerprint, str(ordinal)) for s in left for ordinal in s.done]
    return commits.read_commits(store, units)


def _units(left: Sequence[Span], sample: Sample, job: ModelJob) -> Figure:
    """The units left; a JSONL shard has one for every `unit_rows` candidates, the last with what remains."""
    known = sum(len(span.units) for span in left)
    jsonl = [span for span in left if not span.units]
    per_byte = {s.kind: ratio([s], "candidates", "size") for s in sample.strata}

    def expected(span: Span, k: int) -> float:
        kind = span.shard.kind
        candidates = (per_byte.get(kind) or exact(0.0))[k] * span.shard.size
        return max(1.0, math.ceil(candidates / job.unit_rows) - len(span.done))

    return Figure(*(known + sum(expected(span, k) for span in jsonl) for k in range(3)))
