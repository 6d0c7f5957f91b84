"""Where the tasks of a command run, and where they leave files for each other."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from armo_ray.outputs.dataset import delete, names_in
from armo_ray.outputs.options import DatasetOptions
from armo_ray.storage.store import Store

_WORK = "_work"
Run = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
Options = TypeVar("Options", bound=DatasetOptions)


def per_task(options: Options) -> Options:
    """The options as each task has them."""
    one = options.engine == "ray" and options.threads is None
    return options.model_copy(update={"threads": 1}) if one else options


@contextmanager
def work_folder(options: DatasetOptions) -> Iterator[str]:
    """Where tasks leave files: on this machine, or where all of a cluster finds them."""
    if options.engine == "duckdb":
        with tempfile.TemporaryDirectory(prefix="armo-ray-", dir=options.spill) as folder:
            yield folder
        return
    store = Store(options.output)
    yield f"{store.uri}/{_WORK}"
    delete(store, [name for name in names_in(store) if name.startswith(f"{_WORK}/")])


@contextmanager
def engine(options: DatasetOptions) -> Iterator[Run]:
    """What runs a function over tasks and returns its results in order: this process, or Ray."""
    if options.engine == "duckdb":
        yield lambda function, tasks: [function(task) for task in tasks]
        return
    from armo_ray.cluster.connect import connected, run_tasks

    with connected():
        yield run_tasks
