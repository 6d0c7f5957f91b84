"""The connection to Ray: join a cluster or start Ray locally, and compute independent tasks on it."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import ray
from ray.exceptions import RayError
from ray.job_config import JobConfig

from armo_ray import lean
from armo_ray.cluster import watchdog
from armo_ray.cluster.watchdog import LOCAL, Endpoint, Lost, advice, answers, watched
from armo_ray.signals import stop_on_sigterm

logger = logging.getLogger(__name__)

# for a task whose process died: by default Ray retries forever, even if one row kills every process that reads it
RETRIES = 2
_CANCEL_S = 10.0
_HOME = os.path.realpath(os.path.join(os.path.dirname(__file__), os.pardir))  # the directory of this package


class _OwnJob(JobConfig):
    """A job whose workers search for modules on the usual Python path.

    Ray would add the driver's working directory first, and a user's profile.py there would replace Python's own
    module. The directory is still added if this package is in it, and so is that of the executed script.
    """

    def __init__(self) -> None:
        directories = {os.getcwd(), os.path.dirname(os.path.realpath(sys.argv[0]))}
        super().__init__(_py_driver_sys_path=sorted(directories.intersection([_HOME])))

    def _runtime_env_has_working_dir(self) -> bool:
        return True  # only ray.init calls this; if true, it adds neither directory


@contextmanager
def connected() -> Iterator[bool]:
    """Use the Ray that this process is connected to; otherwise join a cluster or start Ray, and stop it at the end.

    Yields whether nodes may be on other machines. Raises RuntimeError if a task fails or Ray goes away.
    """
    if ray.is_initialized():
        with _task_errors():
            yield True
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # ray#53727 logs an error on every start
    # without an address, Ray would join any cluster on this machine
    address = os.environ.get("RAY_ADDRESS") or LOCAL
    _start(address)
    stop_on_sigterm()  # ray.init replaces the handler
    try:
        with _task_errors(), watched(_endpoints(address), advice(address)):
            yield address != LOCAL
    finally:
        if not isinstance(sys.exception(), Lost):  # could hang then; Ray's exit hook does the rest
            ray.shutdown()


@contextmanager
def _task_errors() -> Iterator[None]:
    try:
        yield
    except RayError as error:  # its text has the worker's traceback; the driver's adds nothing
        raise RuntimeError(f"{str(error).strip()}\nA task failed for good. What is committed stays") from None


def _start(address: str) -> None:
    """Start Ray or join a cluster. Raises RuntimeError if that fails."""
    local = address == LOCAL
    logger.info("starting Ray" if local else f"joining the Ray cluster at {address}")
    own_job: dict[str, Any] = {"job_config": _OwnJob()} if local else {}
    try:
        _wait_for_head(address)
        ray.init(
            address,
            **own_job,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except Exception as error:  # Ray raises plain Exception if its processes do not start in time
        what = "Ray did not start" if local else f"the Ray cluster at {address} cannot be joined"
        why = str(error).strip().rstrip(".")
        raise RuntimeError(f"{what}: {why}. {advice(address)}") from error


def _wait_for_head(address: str) -> None:
    """Wait until the head accepts connections. Raises OSError after its patience; Ray would try for 15 minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:  # not "local" or "auto"
        head = Endpoint("the head", host.strip("[]"), int(port), watchdog.HEAD_PATIENCE_S)
        until = time.monotonic() + head.patience
        while not answers(head):
            if time.monotonic() > until:
                raise OSError(f"nothing listened there for {head.patience:g} s")
            time.sleep(1)


def _endpoints(address: str) -> list[Endpoint]:
    """The two processes whose loss makes Ray end a driver: its node's raylet after 15 s, and the head after 60 s."""
    if "://" in address:  # a Ray client, whose driver is elsewhere
        return []
    whose = "that was started here" if address == LOCAL else f"cluster at {address}"
    own = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == own)
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    patience = 0.0 if address == LOCAL else watchdog.HEAD_PATIENCE_S
    return [
        Endpoint(
            f"this node's raylet of the Ray {whose}", node["NodeManagerAddress"], node["NodeManagerPort"], 0
        ),
        Endpoint(f"the head of the Ray {whose}", host.strip("[]"), int(port), patience),
    ]


@contextmanager
def remote_arguments() -> Iterator[None]:
    """Allow a limit of retries for a step. Ray 2.60 deprecates it without naming a replacement."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", DeprecationWarning)
        yield


def run_tasks(function: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
    """The results of `function` for every task, in order. Each task uses one core of the cluster in `connected`.

    If its process dies, a task is computed again, so it must return the same result. Tasks and results are pickled
    and should be small.
    """
    shared = ray.put(function)
    compute = _compute.options(max_retries=RETRIES)
    results = [compute.remote([shared], task) for task in tasks]
    try:
        return list(ray.get(results))
    except Lost:
        raise
    except BaseException:
        for result in results:
            ray.cancel(result, force=True)  # what they wrote is about to be deleted
        ray.wait(results, num_returns=len(results), timeout=_CANCEL_S)
        raise


@ray.remote(num_cpus=1)
def _compute(shared: list[ray.ObjectRef[Callable[[Any], Any]]], task: Any) -> Any:
    lean.leave_pandas_out()
    return _read(shared[0])(task)


@lru_cache(maxsize=1)
def _read(shared: ray.ObjectRef[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """What tasks share: a worker reads it once, not for every task."""
    function: Callable[[Any], Any] = ray.get(shared)
    return function
