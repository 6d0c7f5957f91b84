"""Two passes over labelled rows: the sums that regressions need, and what a head predicts for a sample of rows."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from armo_ray.errors import ConfigError
from armo_ray.fit.spans import BATCH, Span, TaskRunner, here, in_order, joined, tables_of
from armo_ray.fit.teacher import Teacher, rewards_for
from armo_ray.fit.work import read_back
from armo_ray.fitting import statistics
from armo_ray.fitting.sampling import folds_of, hashes_of, in_fraction, smallest
from armo_ray.fitting.statistics import Statistics
from armo_ray.outputs.hidden import Hidden, labels_of
from armo_ray.storage.store import Store

SAMPLE = 200_000  # rows on which penalties and rank correlations are measured
_TOTAL = "sums.npz"
_SAVED_AFTER = 20  # times as long as it took the last time

Array = npt.NDArray[np.float64]
Range = tuple[float, float]


@dataclass(frozen=True)
class LabelJob:
    """What is fitted to the rows.

    names: of the objectives, which are labels of the outputs, or rewards of a teacher.
    scales: the range of each that becomes 0 to 1; None leaves it as it is.
    length: the name of one more objective, log(1 + tokens of the answer), which needs no labels.
    work: folder for files of tasks.
    """

    names: tuple[str, ...]
    scales: tuple[Range | None, ...]
    length: str | None
    size: int
    folds: int
    test_fraction: float
    seed: int
    work: str
    teacher: Teacher | None = None

    def __call__(self, span: Span) -> "Summed":
        return sum_span(self, span)

    def to_file(self, span: Span) -> "Summed":
        """The same, with the sums in a file of the work folder."""
        summed, file = self(span), f"sums-{span.number:06}.npz"
        Store(self.work).write(file, statistics.to_bytes(summed.sums), lasting=False)
        return summed._replace(sums=file)

    @property
    def objectives(self) -> tuple[str, ...]:
        """The K names of all objectives."""
        return (*self.names, *([self.length] if self.length else []))


class Summed(NamedTuple):
    """What a task reports of a span."""

    rows: int
    tested: int  # rows of test prompts
    unmatched: int  # rows that the teacher did not score
    sums: Any  # Statistics, or the name of the file that holds them


class Sample(NamedTuple):
    """The rows (n,) with the smallest hashes, and what is predicted for them."""

    hashes: npt.NDArray[np.uint64]
    predicted: Array  # (n, K)
    labels: Array  # (n, K), NaN where there is none
    length: Array  # (n,) log(1 + tokens of the answer)
    tested: npt.NDArray[np.bool_]  # whether the row is of a test prompt


def is_tested(prompt_ids: Sequence[str], fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Whether each row (n,) is of a prompt that nothing is fitted to. All outputs agree on it."""
    return in_fraction(hashes_of(prompt_ids, "test", seed), fraction)


def log_length(hidden: Hidden) -> Array:
    """log(1 + tokens of the answer), (n,)."""
    tokens: Array = hidden.table["num_response_tokens"].to_numpy().astype(np.float64)
    return np.log1p(tokens)


def sum_span(job: LabelJob, span: Span) -> Summed:
    """The sums over the rows of a span, but for those of test prompts."""
    sums = statistics.empty(job.objectives, job.size, job.folds)
    rows = tested = unmatched = 0
    for hidden in tables_of(span):
        prompts = hidden.table["prompt_id"].to_pylist()
        labels = scaled_labels(job, hidden)
        kept = ~is_tested(prompts, job.test_fraction, job.seed)
        rows, tested = rows + len(prompts), tested + int((~kept).sum())
        if job.teacher is not None:
            unmatched += int(np.isnan(labels[:, 0]).sum())
        folds = folds_of(prompts, job.folds, job.seed)
        statistics.accumulate(sums, hidden.last[kept], labels[kept], folds[kept])
    return Summed(rows, tested, unmatched, sums)


def scaled_labels(job: LabelJob, hidden: Hidden) -> Array:
    """The labels (n, K) of rows, mapped to 0 to 1 where they have a range. Raises ConfigError if one is outside it."""
    if job.teacher is not None:
        labels = rewards_for(job.teacher, hidden.table["row_id"].to_pylist())
    else:
        labels = np.array(labels_of(hidden.table, job.names), np.float64).reshape(-1, len(job.names))
    for k, (name, ends) in enumerate(zip(job.names, job.scales, strict=True)):
        if ends is None:
            continue
        low, high = ends
        first, last = float(np.float32(low)), float(np.float32(high))  # as labels are kept
        outside = (labels[:, k] < first) | (labels[:, k] > last)
        if outside.any():
            row = int(outside.argmax())
            raise ConfigError(
                f"label {name}: {labels[row, k]:g} of row {hidden.table['row_id'][row].as_py()} is outside its range "
                f"of {low:g} to {high:g}: correct the label, or give its range with --scale {name}=LOW:HIGH"
            )
        labels[:, k] = (labels[:, k] - first) / (last - first)
    return np.column_stack([labels, log_length(hidden)]) if job.length else labels


class Total(NamedTuple):
    """The sums over all rows, and how many there were of each kind."""

    sums: Statistics
    rows: int
    tested: int
    unmatched: int


def sum_all(job: LabelJob, spans: Sequence[Span], run_tasks: TaskRunner) -> Total:
    """The sums over all spans, added in their order. Goes on from where an earlier command with this work folder was.

    Raises ConfigError if other rows were read than the manifests count.
    """
    store = Store(job.work)
    total, done = _saved(store, job)
    # sums are larger than most rows: those of one span at a time are in memory here, and a cluster's are in files
    task, batch_spans = (job, 1) if run_tasks is here else (job.to_file, BATCH)
    saved, took = time.monotonic(), 0.0
    for batch in in_order("labels", task, spans[done:], run_tasks, batch_spans):
        for span, result in batch:
            check_rows(span, result.rows)
            total = _with(total, result, store)
            done += 1
        if time.monotonic() - saved >= _SAVED_AFTER * took or done == len(spans):
            began = time.monotonic()
            _save(store, total, done)
            saved = time.monotonic()
            took = saved - began
    if job.teacher is not None and total.unmatched == total.rows:
        raise ConfigError(
            f"--target-scores {job.teacher.uri}: none of its rows is one of the {total.rows:,} that were embedded: "
            f"both must be made of the same shards"
        )
    return total._replace(sums=statistics.flush(total.sums))


def _with(total: Total, more: Summed, store: Store) -> Total:
    """A total with the sums of a span, whose memory or file is free then."""
    in_file = isinstance(more.sums, str)
    sums = statistics.from_bytes(read_back(store, more.sums)) if in_file else more.sums
    counts = (a + b for a, b in zip(total[1:], more[:3], strict=True))
    total = Total(statistics.added(total.sums, sums), *counts)
    sums.groups.clear()
    sums.scratch = None
    if in_file:
        store.delete(more.sums)
    return total


def check_rows(span: Span, rows: int) -> None:
    """Raise ConfigError unless a span had the rows that its manifest counts: one that is read twice spoils a fit."""
    if rows != span.rows:
        raise ConfigError(
            f"{span.units[0].output}: {rows:,} rows were read of {len(span.units)} units, but its manifest counts "
            f"{span.rows:,}. Check it with armo-ray verify"
        )


def _saved(store: Store, job: LabelJob) -> tuple[Total, int]:
    """What an earlier command saved, and the number of spans in it."""
    try:
        with np.load(io.BytesIO(store.read(_TOTAL)), allow_pickle=False) as file:
            done, *counts = file["counts"].tolist()
            return Total(statistics.from_bytes(file["sums"].tobytes()), *counts), done
    except FileNotFoundError:
        return Total(statistics.empty(job.objectives, job.size, job.folds), 0, 0, 0), 0


def _save(store: Store, total: Total, done: int) -> None:
    content = io.BytesIO()
    sums = np.frombuffer(statistics.to_bytes(total.sums), np.uint8)
    np.savez(content, allow_pickle=False, sums=sums, counts=np.array([done, *total[1:]]))
    store.write(_TOTAL, content.getvalue())


@dataclass(frozen=True)
class Predict:
    """Predicts the objectives of a share of the rows of a span with weights (K, H)."""

    job: LabelJob
    weights: Array
    share: float

    def __call__(self, span: Span) -> Sample:
        return _joined([_predicted(self, hidden) for hidden in tables_of(span)])


def _predicted(task: Predict, hidden: Hidden) -> Sample:
    job = task.job
    hashes = hashes_of(hidden.table["row_id"].to_pylist(), "sample", job.seed)
    rows = np.flatnonzero(in_fraction(hashes, task.share))
    prompts = hidden.table["prompt_id"].take(rows).to_pylist()
    return Sample(
        hashes[rows],
        hidden.last[rows].astype(np.float64) @ task.weights.T,
        scaled_labels(job, hidden)[rows],
        log_length(hidden)[rows],
        is_tested(prompts, job.test_fraction, job.seed),
    )


def sample(job: LabelJob, weights: Array, spans: Sequence[Span], run_tasks: TaskRunner) -> Sample:
    """Predictions for the SAMPLE rows with the smallest hashes, or for all if there are no more."""
    rows = sum(span.rows for span in spans)
    share = min(1.0, 1.5 * SAMPLE / max(rows, 1))  # a few more than needed; the smallest are taken
    found = _joined([])
    for batch in in_order("predictions", Predict(job, weights, share), spans, run_tasks):
        found = _joined([found, *(result for _, result in batch)])
        kept = smallest(found.hashes, SAMPLE)
        columns: list[Any] = [values[kept] for values in found]
        found = Sample(*columns)
    return found


def _joined(samples: Sequence[Sample]) -> Sample:
    some = [sample for sample in samples if len(sample.hashes)]
    if not some:
        return (
            samples[0] if samples else Sample(*(np.empty(0, kind) for kind in ("u8", "f8", "f8", "f8", "?")))
        )
    return joined(some)
