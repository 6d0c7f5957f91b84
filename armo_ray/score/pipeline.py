"""A scoring run: read and tokenize, score on a pool of replicas, write and commit.

The driver only counts the commit records that come out of the graph.
"""

import logging
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy

from armo_ray.cluster.connect import RETRIES, connected, remote_arguments
from armo_ray.errors import ConfigError
from armo_ray.score import fp8_check, graph, kept_columns, passes, shared_paths, status_file
from armo_ray.score.card import Card
from armo_ray.score.config import ModelOptions, ScoreConfig, load_config
from armo_ray.score.job import ModelJob, prepare_dataset
from armo_ray.score.passes import Committed
from armo_ray.score.poison import isolate
from armo_ray.score.progress import Progress, every
from armo_ray.score.replicas import Pool, Replica, end_replicas, end_stranded, pool_of, replicas_up
from armo_ray.score.run import Job
from armo_ray.score.run_options import RunOptions
from armo_ray.score.stages import candidate_rows, read_and_tokenize, tokenize_rows, write_and_commit
from armo_ray.score.status import of_totals
from armo_ray.storage import commits, lock, resume
from armo_ray.storage.commit_log import CommitLog
from armo_ray.storage.json_files import to_json
from armo_ray.storage.records import Totals
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span, count_units
from armo_ray.text import labels
from armo_ray.verify.model import report, verify_model

logger = logging.getLogger(__name__)

# commits every unit that is left: of an output, a job and its spans, their standing, and the options
Execute = Callable[[Store, Any, list[Span], resume.Standing, Any], None]

# units queued at a replica, so that the next is ready when one ends
IN_FLIGHT = 4
_STRANDED_EVERY_S = 10.0
_SAMPLE_ROWS = 1000  # of a dataset, from which types are inferred if its schema lacks them


def run(job: ModelJob, spans: list[Span], config: ModelOptions) -> tuple[Totals, Totals]:
    """Score and commit the units of `spans`, the whole input, that are not committed yet, as `commit_units`."""
    return commit_units(job, spans, config, _execute)


def commit_units(job: Job, spans: list[Span], config: RunOptions, execute: Execute) -> tuple[Totals, Totals]:
    """Commit the units of `spans`, the whole input, that are not committed yet; `execute` does so.

    Returns the totals of the whole output, and those of the shards of this input, including earlier runs.

    Starts a local Ray, or joins the cluster of RAY_ADDRESS, unless Ray is already running.

    Raises ConfigError if another command is writing the output or there is no room for the replicas, and RuntimeError
    if a task failed for good.
    """
    store, uris = Store(job.output), {span.shard.uri for span in spans}
    with lock.held(store, config.command):
        status_file.remove(store)
        try:
            standing = resume.standing(store, spans, job.fingerprint, config.redo, config.forget)
            logger.info("%d of %d shards have units to score", len(standing.left), len(spans))
            if standing.left:
                execute(store, job, spans, standing, config)
            elif standing.dropped:
                passes.begin(store, standing)
            log = commits.finish(store)
        except BaseException as error:
            with suppress(Exception):  # must not hide the error that stopped the run
                _record_stop(store, Card(store, job, config.input), config.command, error)
            raise
        totals, of_input = log.totals(), log.totals(sources=uris)
        _log_lost_labels(log, job)
        try:
            Card(store, job, config.input).complete(log)
        except Exception as error:  # the scores are complete without it
            logger.warning("the dataset card cannot be written: %s", error)
        status_file.write(store, config.command, of_totals(of_input, config), totals)
    _log_vanished(resume.vanished(log.sources(), uris, config.input), job)
    return totals, of_input


def _log_lost_labels(log: CommitLog, job: Job) -> None:
    """Warn of labels that could not be read; their candidates are flagged."""
    lost: Counter[str] = Counter()
    for record in log.records() if job.labels else ():
        lost.update(dict(record.extra).get(labels.LOST, {}))
    for name, count in lost.items():
        logger.warning(
            "label %s of %d candidates could not be read: it is missing, and they are flagged %s:%s",
            name,
            count,
            labels.LOST,
            name,
        )


def _record_stop(store: Store, card: Card, command: str, error: BaseException) -> None:
    """Write why a run stopped and what is committed, which may be more than it counted before it stopped."""
    totals = None
    with suppress(Exception):
        totals = commits.read_log(store).totals()
    status_file.write_error(store, command, error, totals)
    if totals is not None and commits.SUCCESS not in store.list_names(""):  # else it stopped before it began
        card.stopped(totals)


def _log_vanished(gone: list[str], job: Job) -> None:
    if gone:
        text = (
            "is in the scores" if job.keep_text else "cannot be read again (--keep-text would have kept it)"
        )
        logger.warning(
            "%d shards that were scored are no longer in the input, the first is %s: their rows stay in %s, their "
            "text %s; --forget SHARD drops the scores of one",
            len(gone),
            gone[0],
            job.output,
            text,
        )


def _execute(
    store: Store, job: ModelJob, spans: list[Span], standing: resume.Standing, config: ModelOptions
) -> None:
    """Commit every unit that is left. Nothing is deleted before the checks of the cluster and the model pass."""
    began, left = time.time(), standing.left
    size = sum(span.source_bytes for span in left)
    with connected() as joined:
        if joined:
            shared_paths.probe(store, job.models, [span.shard for span in left])
        pool = pool_of(config)
        if isinstance(config, ScoreConfig):
            _check(store, job, left, pool, config)
        card = Card(store, job, config.input, standing.committed, count_units(left))
        progress = Progress(size, began, {"output": store.uri, "model": job.model}, replicas_up)

        def work(left: list[Span]) -> Iterator[Committed]:
            for unit in _committed_units(job, left, pool):
                progress.update(unit)
                yield unit

        def work_alone(left: list[Span]) -> Iterator[Committed]:
            end_replicas()
            for unit in isolate(left, job, pool):
                progress.update(unit, isolated=True)
                yield unit

        stranded = every(
            _STRANDED_EVERY_S,
            "looking for replicas without a node",
            partial(end_stranded, pool, {}),
            wait_s=2.0,
        )
        passes.begin(store, standing)
        with card.drafted(progress), progress, stranded:
            passes.commit_all(store, job.fingerprint, spans, left, work, work_alone)


def _check(store: Store, job: ModelJob, left: list[Span], pool: Pool, config: ScoreConfig) -> None:
    if config.verify:
        _check_model(job, pool)
    if job.dtype == "fp8":
        _check_fp8(store, job, left, pool, config.min_agreement)


def _check_model(job: ModelJob, pool: Pool) -> None:
    """Run the checks of `armo-ray verify --model` on a replica. Raises ConfigError if one fails."""
    task: Any = ray.remote(**pool.resources)(verify_model)
    checks, _ = ray.get(
        task.remote(job.model, job.revision, job.dtype, pool.device, job.family, None, job.reference)
    )
    logger.info("the model on a replica:\n%s", report(checks))
    if failed := [check for check in checks if not check.passed]:
        raise ConfigError(f"model {job.model}: {failed[0].name}: {failed[0].detail}")


def _check_fp8(store: Store, job: ModelJob, spans: list[Span], pool: Pool, min_agreement: float) -> None:
    """Compare float8 with bfloat16 on the input, once per output. Raises ConfigError if they disagree."""
    report = store.read_json(fp8_check.REPORT)
    if report is None or report["columns"]["score"]["spearman"] is None:  # the earlier input was too small
        task: Any = ray.remote(**pool.resources)(fp8_check.fp8_agreement)
        report = ray.get(task.remote(spans, job, pool.device))
        store.write(fp8_check.REPORT, to_json(report))
    fp8_check.check_agreement(report, min_agreement)


def _committed_units(job: ModelJob, spans: list[Span], pool: Pool) -> Iterator[Committed]:
    """Yield the units as they are committed."""
    read, write = partial(_read, job=job), partial(_write, job=job)
    return graph.results(spans, read, partial(_on_replicas, job=job, pool=pool), write)


def _on_replicas(ds: ray.data.Dataset, job: ModelJob, pool: Pool) -> ray.data.Dataset:
    """Score tokenized units on a pool of replicas."""
    with remote_arguments():
        return ds.map_batches(
            Replica,
            fn_constructor_kwargs={"job": job, "pool": pool},
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=pool.low,
                max_size=pool.high,
                initial_size=pool.high,
                max_tasks_in_flight_per_actor=IN_FLIGHT,
            ),
            max_restarts=-1,  # bounded by the retries of a task and by how many blocks may fail
            max_task_retries=RETRIES,
            **pool.resources,
        )


def score_dataset(
    ds: ray.data.Dataset,
    model: str,
    rows_per_task: int = 512,
    **options: Any,
) -> ray.data.Dataset:
    """Score a Ray Dataset that the caller reads and writes.

    Args:
        ds: rows of any layout that `armo-ray score` reads.
        model: a checkpoint directory that every node sees, or a hub id.
        rows_per_task: rows that one task tokenizes and a replica scores at once.
        options: options of `armo-ray score`, by their names in a TOML file: dtype, keep, layout, replicas, ...
            With dtype fp8, scores are not compared with bfloat16 first.

    Returns:
        A dataset with one row per candidate: the columns of the scores except row_id, source and source_row, then
        `reason` and `detail`, which are null if the candidate was scored. Rows have no order, and the work cannot be
        resumed: that takes the commits of `armo-ray score`. Kept columns have the type of the first rows; tensors
        become lists. A dataset with neither rows nor columns is returned as it is.

    Raises:
        ConfigError: an option, the model or the layout is wrong.
    """
    config = load_config(None, {"input": ["dataset"], "output": "dataset", "model": model, **options})
    seen = _seen(ds, bool(config.keep))
    if not seen:
        return ds
    job = prepare_dataset(config, seen)
    ds = ds.map_batches(
        partial(_tokenize, job=job), batch_size=rows_per_task, batch_format="pyarrow", num_cpus=1
    )
    scored = _on_replicas(ds, job, pool_of(config))
    return scored.map_batches(
        partial(candidate_rows, job=job), batch_size=1, batch_format="pyarrow", num_cpus=graph.WRITE_CPUS
    )


def _seen(ds: ray.data.Dataset, with_types: bool) -> list[kept_columns.Seen]:
    """The columns of a dataset; with types, its first rows too if the schema does not define the types."""
    schema = ds.schema()
    if schema is None:
        return []
    base = schema.base_schema
    unclear = not isinstance(base, pa.Schema) or any(map(kept_columns.is_unclear, base.types))
    if isinstance(base, pa.Schema) and not (with_types and unclear):
        return [kept_columns.Seen("the dataset", base.names, base)]
    if not with_types:
        return [kept_columns.Seen("the dataset", list(base.names), pa.schema([]))]
    blocks: Any = ds.limit(_SAMPLE_ROWS).iter_batches(batch_size=None, batch_format="pyarrow")
    return [
        kept_columns.Seen(
            "the dataset", b.column_names, b.schema, [kept_columns.plain(row) for row in b.to_pylist()]
        )
        for b in blocks
    ]


def _read(batch: pa.Table, job: ModelJob) -> Iterator[pa.Table]:
    for pickled in batch["span"].to_pylist():
        yield from read_and_tokenize(pickle.loads(pickled), job)


def _tokenize(batch: pa.Table, job: ModelJob) -> pa.Table:
    return tokenize_rows([kept_columns.plain(row) for row in batch.to_pylist()], job)


def _write(batch: pa.Table, job: ModelJob) -> pa.Table:
    return graph.result(write_and_commit(batch, job))
