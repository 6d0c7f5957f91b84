"""The Ray Data graph of units of work: spans -> read -> a pool of actors -> write and commit.

A unit is one row and one block from end to end, so that a task that Ray replays returns exactly what it returned
before.
"""

import logging
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext

from armo_ray.cluster.connect import RETRIES, remote_arguments
from armo_ray.storage.units import Span, spread

logger = logging.getLogger(__name__)

RESULT = "result"  # column of what `write` returns: one pickled value
WRITE_CPUS = 0.25
# blocks that may fail before the run fails: a poison row fails its block and those queued at the replica it kills
_MOST_ERRORED = 32
_ERRORS_OF_BLOCKS = "ray.data._internal.execution.streaming_executor_state"  # logs each block that failed


def results(
    spans: list[Span],
    read: Callable[[pa.Table], Iterator[pa.Table]],
    on_actors: Callable[[ray.data.Dataset], ray.data.Dataset],
    write: Callable[[pa.Table], pa.Table] | None = None,
) -> Iterator[Any]:
    """Yield the result of every unit, as it is done.

    Args:
        spans: what is left to do; begun in an order that is good for the storage.
        read: the units of a span, pickled in the column `span`, as tables of one row.
        on_actors: adds the step that a pool of actors takes.
        write: a unit's table to one row with the column RESULT; None if the actors write.
    """
    items = [{"span": pickle.dumps(span)} for span in spread(spans)]
    with _one_row_a_block():
        ds: ray.data.Dataset = ray.data.from_items(items, override_num_blocks=len(items))
    options: Any = {"batch_size": 1, "batch_format": "pyarrow", "max_retries": RETRIES}
    with remote_arguments():
        ds = ds.map_batches(read, num_cpus=1, **options)
    ds = on_actors(ds)
    if write is not None:
        with remote_arguments():
            ds = ds.map_batches(write, num_cpus=WRITE_CPUS, **options)
    with _causes_logged():
        # not iter_batches: its threads and statistics take the driver about 1 ms per unit more
        for bundle in ds.iter_internal_ref_bundles():
            for block in ray.get(bundle.block_refs):
                yield from _values(block)


def result(value: Any) -> pa.Table:
    """The table that stands for a unit that is done."""
    return pa.table({RESULT: [pickle.dumps(value)]})


def _values(block: pa.Table) -> list[Any]:
    """The results of all units of a block; a span without units gives a block without columns."""
    return [pickle.loads(pickled) for pickled in block[RESULT].to_pylist()] if block.num_rows else []


class _Causes(logging.Handler):
    """Logs in one line why a task failed, where Ray Data goes on without its blocks."""

    def emit(self, record: logging.LogRecord) -> None:
        error: Any = (record.exc_info or (None, None))[1]
        if error is not None and "Ignoring this exception" in record.getMessage():
            logger.warning("a task failed with %s; its units are done again", _cause(error))


def _cause(error: Any) -> str:
    """The first error of those that led to this one, in a line. Ray keeps it only in the text of the traceback."""
    text, is_wrapped, _ = str(error).partition("\n\nThe above exception was the direct cause")
    if is_wrapped:
        return text.rstrip().splitlines()[-1].strip()
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0]}"


@contextmanager
def _causes_logged() -> Iterator[None]:
    """Log why tasks fail while datasets are executed in the body."""
    errors, handler = logging.getLogger(_ERRORS_OF_BLOCKS), _Causes()
    level, propagates = errors.level, errors.propagate
    errors.setLevel(logging.ERROR)
    errors.propagate = False
    errors.addHandler(handler)
    try:
        yield
    finally:
        errors.removeHandler(handler)
        errors.setLevel(level)
        errors.propagate = propagates


@contextmanager
def _one_row_a_block() -> Iterator[None]:
    """Set the context for a dataset that is created in the body, then restore that of the caller."""
    before = DataContext.get_current()
    context = before.copy()
    context.target_max_block_size = 1  # the smallest target ends a block after every row: a unit is a block
    context.max_errored_blocks = _MOST_ERRORED
    context.memory_usage_poll_interval_s = (
        None  # reads the maps of a process every second, which may be large
    )
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised as well: print them once
    # Ray counts inputs; one JSONL shard is one input and many units
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)
    DataContext._set_current(context)
    try:
        yield
    finally:
        DataContext._set_current(before)
