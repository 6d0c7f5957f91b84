"""Where the tasks of a command execute, and where they write files for each other."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from armo_ray.outputs.database import database
from armo_ray.outputs.dataset import delete, names_in
from armo_ray.outputs.options import DatasetOptions
from armo_ray.storage.scratch import scratch_directory
from armo_ray.storage.store import Store

_SCRATCH = "_work"
# tasks in this process: while one encodes rows in Python, DuckDB works on another; each holds the rows that it writes
_AT_ONCE = 4
TaskRunner = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
Options = TypeVar("Options", bound=DatasetOptions)


def per_task(options: Options) -> Options:
    """The options for one task: with Ray, one thread unless --threads says otherwise."""
    single_threaded = options.engine == "ray" and options.threads is None
    return options.model_copy(update={"threads": 1}) if single_threaded else options


@contextmanager
def scratch_folder(options: DatasetOptions) -> Iterator[str]:
    """A temporary folder for files that tasks share: on this machine for DuckDB, in the output for Ray."""
    if options.engine == "duckdb":
        with scratch_directory(options.spill) as folder:
            yield str(folder)
        return
    store = Store(options.output)
    yield f"{store.uri}/{_SCRATCH}"
    delete(store, [name for name in names_in(store) if name.startswith(f"{_SCRATCH}/")])


@contextmanager
def engine(options: DatasetOptions) -> Iterator[TaskRunner]:
    """Yields what applies a function to every task, in this process or on Ray, and returns the results in order."""
    if options.engine == "duckdb":
        at_once = min(options.threads or os.cpu_count() or 1, _AT_ONCE)
        with database(options), ThreadPoolExecutor(at_once) as pool:
            yield lambda function, tasks: list(pool.map(function, tasks))
        return
    from armo_ray.cluster.connect import connected, run_tasks

    with connected():
        yield run_tasks
