"""A run without Ray: its stages one after the other in this process, which fail, repeat and stop where a test says."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from armo_ray.score import passes
from armo_ray.score.config import ScoreConfig
from armo_ray.score.job import ModelJob, prepare
from armo_ray.score.passes import Committed
from armo_ray.score.stages import Scorer, read_and_tokenize, write_and_commit
from armo_ray.score.stages.unit_block import Header
from armo_ray.storage import commits, resume
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span, spread

FINE = "fine"
# what happens to a unit: its task is lost, done twice, done but not reported, or ends before its commit record; its
# writer comes late, when another run goes on; the rest of its span is lost; the driver dies before or after it
FAULTS = ("lost", "twice", "unreported", "uncommitted", "late", "reader", "driver-before", "driver-after")


class Crash(BaseException):
    """The driver is gone."""


@dataclass
class Cluster:
    """Carries out runs. `draw` says what happens to the next unit, `shuffle` in which order spans are done."""

    draw: Callable[[], str]
    shuffle: Callable[[list[Span]], list[Span]]
    scorers: dict[str, Scorer]
    late: list[tuple[pa.Table, ModelJob]] = field(default_factory=list)
    scored: dict[str, pa.Table] = field(default_factory=dict)  # by unit: the same each time, and slow

    def run(self, config: ScoreConfig) -> None:
        """As `armo-ray score`. Raises Crash where the driver dies."""
        job, spans = prepare(config)
        store = Store(job.output)
        standing = resume.standing(store, spans, job.fingerprint, config.redo, config.forget)
        if standing.left or standing.dropped:
            passes.begin(store, standing)
        passes.commit_all(
            store,
            job.fingerprint,
            spans,
            standing.left,
            lambda left: self._work(left, job),
            lambda left: (self._work_alone(span, job) for span in left),
        )
        commits.finish(store)

    def write_late(self) -> None:
        """What writers of earlier runs still do."""
        for table, job in self.late:
            write_and_commit(table, job)
        self.late = []

    def _work(self, left: list[Span], job: ModelJob) -> Iterator[Committed]:
        for span in self.shuffle(spread(left)):
            for table in read_and_tokenize(span, job):
                fault = self.draw()
                if fault == "reader":
                    break
                yield from self._unit(table, job, fault)

    def _unit(self, table: pa.Table, job: ModelJob, fault: str) -> Iterator[Committed]:
        if fault == "driver-before":
            raise Crash
        if fault == "lost":
            return
        scored = self._score(table, job)
        if fault == "late":
            self.late.append((scored, job))
            return
        committed = write_and_commit(scored, job)
        if fault == "twice":
            committed = write_and_commit(scored, job)
        if fault == "uncommitted":
            Store(job.output).delete(f"_commits/{Header.of(table).unit.id}.json")
            return
        if fault == "driver-after":
            raise Crash
        if fault != "unreported":
            yield committed

    def _work_alone(self, span: Span, job: ModelJob) -> Committed:
        table = next(read_and_tokenize(span, job))
        if self.draw().startswith("driver"):
            raise Crash
        return write_and_commit(self._score(table, job), job)

    def _score(self, table: pa.Table, job: ModelJob) -> pa.Table:
        if job.model not in self.scorers:
            self.scorers[job.model] = Scorer(job, "cpu")
        unit = Header.of(table).unit.id
        if unit not in self.scored:
            self.scored[unit] = self.scorers[job.model](table)
        return self.scored[unit]
