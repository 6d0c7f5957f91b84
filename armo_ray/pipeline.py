"""The Ray Data graph: spans -> read and tokenize -> score on a pool of replicas -> write and commit.

A unit is one row and one block from end to end, so that a task that Ray replays gives exactly what it gave
before. The driver only counts commit records as they come out.
"""

import gc
import json
import logging
import os
import pickle
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from armo_ray.config import load_config
from armo_ray.errors import ConfigError
from armo_ray.plan import Job, prepare_dataset
from armo_ray.progress import Progress, stop_on_sigterm
from armo_ray.stages import Scorer, candidate_rows, fp8, read_and_tokenize, tokenize_rows, write_and_commit
from armo_ray.storage import commits
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span, spread

logger = logging.getLogger(__name__)

# Less than a core each: a pool that held every CPU would leave none to read, and the job would stand still.
_ACTOR_CPUS = 0.25
_WRITE_CPUS = 0.25
# Units queued at a replica, so that the next is there when one ends.
_IN_FLIGHT = 4


def run(
    job: Job,
    spans: list[Span],
    gpus_per_replica: float | None = None,
    replicas: tuple[int, int] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Do what is not committed yet of the spans.

    Returns the totals of the whole output, and of the shards that had something left to do: all, if none had.

    Starts a local Ray, or joins the cluster of RAY_ADDRESS, unless Ray is up already.

    Raises RuntimeError where a task failed for good, or Ray reported no error and units are missing.
    """
    store = Store(job.output)
    left = commits.to_do(store, spans, job.fingerprint)
    logger.info("%d of %d shards have units to do", len(left), len(spans))
    if left:
        store.delete(commits.SUCCESS)
        _execute(job, left, gpus_per_replica, replicas)
        if lost := commits.to_do(store, spans, job.fingerprint):
            raise RuntimeError(
                f"{store.uri}: units of {len(lost)} shards are not committed, the first of "
                f"{lost[0].shard.uri}, though Ray reported no error. Run the same command again"
            )
    records = commits.finish(store)
    touched = {span.shard.uri for span in left}
    done = [record for record in records if not touched or record["source"] in touched]
    return commits.totals(records), commits.totals(done)


def _execute(
    job: Job, spans: list[Span], gpus_per_replica: float | None, replicas: tuple[int, int] | None
) -> None:
    own = not ray.is_initialized()
    began = time.time()
    if own:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # ray#53727 logs an error on every start
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        stop_on_sigterm()  # ray.init takes the signal for itself
    try:
        pool = _pool(job, gpus_per_replica, replicas)
        if job.dtype == "fp8":
            _check_fp8(job, spans, pool.gpus)
        size = sum(sum(u.source_bytes for u in s.units) or s.shard.size for s in spans)
        with Progress(size, began) as progress:
            for record in _records(job, spread(spans), pool):
                progress.update(record)
    except RayError as error:  # its text holds the worker's traceback; the driver's own says nothing more
        raise RuntimeError(f"{str(error).strip()}\nA task failed for good. What is committed stays") from None
    finally:
        if own:
            ray.shutdown()


def _check_fp8(job: Job, spans: list[Span], gpus: float) -> None:
    """Compare float8 with bfloat16 on the input, once for an output; raises ConfigError where they disagree."""
    store = Store(job.output)
    report = store.read_json(fp8.REPORT)
    if report is None or report["columns"]["score"]["spearman"] is None:  # too little input then
        task: Any = ray.remote(num_cpus=_ACTOR_CPUS, num_gpus=gpus)(fp8.fp8_agreement)
        report = ray.get(task.remote(spans, job, "cuda" if gpus else "cpu"))
        store.write(fp8.REPORT, commits.to_json(report))
    fp8.judge(report, job.min_agreement)


class _Pool(NamedTuple):
    """The replicas of a run."""

    gpus: float  # of each
    low: int
    high: int


def _pool(job: Job, gpus_per_replica: float | None, replicas: tuple[int, int] | None) -> _Pool:
    """As many replicas as asked for, by default one for each GPU of the cluster or one without any."""
    have = ray.cluster_resources().get("GPU", 0.0)
    gpus = gpus_per_replica if gpus_per_replica is not None else min(1.0, have)
    low, high = replicas or (max(1, int(have / gpus + 1e-6)) if gpus else 1,) * 2
    if gpus * low > have and "RAY_ADDRESS" not in os.environ:
        raise ConfigError(
            f"{low} replicas of {gpus:g} GPUs: this machine has {have:g}; use --gpus-per-replica 0 to score on "
            f"its CPUs"
        )
    if not gpus and job.dtype != "float32":
        logger.warning("%s on CPUs is slow and rounds; --dtype float32 is exact", job.dtype)
    logger.info("scoring on %s replicas, %g GPUs each", low if low == high else f"{low} to {high}", gpus)
    return _Pool(gpus, low, high)


def _records(job: Job, spans: list[Span], pool: _Pool) -> Iterator[dict[str, Any]]:
    """The commit records, as units are committed."""
    items = [{"span": pickle.dumps(span)} for span in spans]
    with _one_row_a_block():
        ds: ray.data.Dataset = ray.data.from_items(items, override_num_blocks=len(items))
    ds = ds.map_batches(partial(_read, job=job), batch_size=1, batch_format="pyarrow", num_cpus=1)
    ds = _on_replicas(ds, job, pool)
    ds = ds.map_batches(partial(_write, job=job), batch_size=1, batch_format="pyarrow", num_cpus=_WRITE_CPUS)
    for batch in ds.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1):
        yield json.loads(batch["record"][0].as_py())


def _on_replicas(ds: ray.data.Dataset, job: Job, pool: _Pool) -> ray.data.Dataset:
    """Tokenized units through a pool of replicas."""
    with warnings.catch_warnings():
        # the two limits below count as remote args, which 2.60 deprecates without naming what replaces them
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", DeprecationWarning)
        return ds.map_batches(
            _Replica,
            fn_constructor_kwargs={"job": job, "gpus": pool.gpus, "replicas": pool.high},
            batch_size=1,
            batch_format="pyarrow",
            num_gpus=pool.gpus,
            num_cpus=_ACTOR_CPUS,
            compute=ActorPoolStrategy(
                min_size=pool.low,
                max_size=pool.high,
                initial_size=pool.high,
                max_tasks_in_flight_per_actor=_IN_FLIGHT,
            ),
            max_restarts=4,  # Ray's default is for ever, also for an input that kills every process it meets
            max_task_retries=2,
        )


def score_dataset(
    ds: ray.data.Dataset,
    model: str,
    rows_per_task: int = 512,
    gpus_per_replica: float | None = None,
    replicas: tuple[int, int] | None = None,
    **options: Any,
) -> ray.data.Dataset:
    """Score a Ray Dataset that the caller reads and writes.

    Args:
        ds: rows of any layout that `armo-ray score` reads.
        model: a checkpoint directory that every node sees, or a hub id.
        rows_per_task: rows that one task tokenizes and a replica scores at once.
        options: others of `armo-ray score`, by their names in a TOML file: dtype, keep, layout, max_length, ...
            With dtype fp8 nothing is compared with bfloat16 first.

    Returns:
        A dataset of one row per candidate: the columns of the scores but row_id, source and source_row, then
        `reason` and `detail`, null where the candidate was scored. There is no order and no resume: what a
        run of `armo-ray score` promises beyond this lies in its commits.

    Raises:
        ConfigError: a wrong option, model or layout.
    """
    config = load_config(None, {"input": ["dataset"], "output": "dataset", "model": model, **options})
    job = prepare_dataset(config, ds.schema().base_schema)
    ds = ds.map_batches(
        partial(_tokenize, job=job), batch_size=rows_per_task, batch_format="pyarrow", num_cpus=1
    )
    scored = _on_replicas(ds, job, _pool(job, gpus_per_replica, replicas))
    return scored.map_batches(
        partial(candidate_rows, job=job), batch_size=1, batch_format="pyarrow", num_cpus=_WRITE_CPUS
    )


@contextmanager
def _one_row_a_block() -> Iterator[None]:
    """The context that a dataset made now keeps; the caller's own comes back."""
    before = DataContext.get_current()
    context = before.copy()
    context.target_max_block_size = 1  # the smallest target closes a block after every row: a unit is a block
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised too, and printed once
    # Ray counts inputs; one JSONL shard is one input and many units
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)
    DataContext._set_current(context)
    try:
        yield
    finally:
        DataContext._set_current(before)


def _read(batch: pa.Table, job: Job) -> Iterator[pa.Table]:
    for pickled in batch["span"].to_pylist():
        yield from read_and_tokenize(pickle.loads(pickled), job)


def _tokenize(batch: pa.Table, job: Job) -> pa.Table:
    return tokenize_rows(batch.to_pylist(), job)


def _write(batch: pa.Table, job: Job) -> pa.Table:
    return pa.table({"record": [json.dumps(write_and_commit(batch, job))]})


class _Replica(Scorer):
    """A scorer that takes its share of a machine without GPUs."""

    def __init__(self, job: Job, gpus: float, replicas: int) -> None:
        if not gpus:
            import torch

            torch.set_num_threads(max(1, ((os.cpu_count() or 1) - 1) // replicas))  # and one to read
        super().__init__(job, "cuda" if gpus else "cpu")
        gc.freeze()  # the modules and weights stay: collecting a unit's garbage need not visit them
