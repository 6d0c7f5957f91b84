"""The Ray that work is done on: joined or started, and independent tasks on it."""

import logging
import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError
from ray.job_config import JobConfig

from armo_ray.cluster.watch import Endpoint, Lost, answers, watched
from armo_ray.signals import stop_on_sigterm

logger = logging.getLogger(__name__)

# of a task whose process died: Ray's default is for ever, also for a row that kills each it meets
RETRIES = 2
LOCAL = "local"
HEAD_PATIENCE_S = 30.0  # a head that is restarted is waited for; half of what Ray itself waits
_HOME = os.path.realpath(os.path.join(os.path.dirname(__file__), os.pardir))  # what holds this package


class _OwnJob(JobConfig):
    """A job whose workers look for modules where any Python process does.

    Ray would have them look in the driver's working directory first, where a profile.py of the user's takes the
    place of Python's own. They still do where this package lies there, or beside the script that runs.
    """

    def __init__(self) -> None:
        places = {os.getcwd(), os.path.dirname(os.path.realpath(sys.argv[0]))}
        super().__init__(_py_driver_sys_path=sorted(places.intersection([_HOME])))

    def _runtime_env_has_working_dir(self) -> bool:
        return True  # asked by ray.init alone, which then adds neither directory


@contextmanager
def connected() -> Iterator[bool]:
    """Ray as it is, or started and stopped here. Yields whether its nodes may be other machines than this.

    A failed task, and Ray that goes away, become a RuntimeError.
    """
    if ray.is_initialized():
        with _task_errors():
            yield True
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # ray#53727 logs an error on every start
    # without an address Ray would join any cluster that it finds on the machine
    address = os.environ.get("RAY_ADDRESS") or LOCAL
    _start(address)
    stop_on_sigterm()  # ray.init takes the signal for itself
    try:
        with _task_errors(), watched(_endpoints(address), _advice(address)):
            yield address != LOCAL
    finally:
        if not isinstance(sys.exception(), Lost):  # it could hang: what is left is for Ray's hook at the exit
            ray.shutdown()


@contextmanager
def _task_errors() -> Iterator[None]:
    try:
        yield
    except RayError as error:  # its text holds the worker's traceback; the driver's own says nothing more
        raise RuntimeError(f"{str(error).strip()}\nA task failed for good. What is committed stays") from None


def _start(address: str) -> None:
    """Raises RuntimeError where Ray does not start, or the cluster cannot be joined."""
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
    except Exception as error:  # a bare one where its processes do not come up in time
        what = "Ray did not start" if local else f"the Ray cluster at {address} cannot be joined"
        why = str(error).strip().rstrip(".")
        raise RuntimeError(f"{what}: {why}. {_advice(address)}") from error


def _wait_for_head(address: str) -> None:
    """Raises OSError where nothing listens at the address; Ray itself would ask for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:  # not "local" or "auto"
        head = Endpoint("the head", host.strip("[]"), int(port), HEAD_PATIENCE_S)
        until = time.monotonic() + head.patience
        while not answers(head):
            if time.monotonic() > until:
                raise OSError(f"nothing listened there for {head.patience:g} s")
            time.sleep(1)


def _endpoints(address: str) -> list[Endpoint]:
    """The two processes without which Ray ends a driver: the raylet of its node in 15 s, the head in 60 s."""
    if "://" in address:  # a client of a driver elsewhere
        return []
    whose = "that was started here" if address == LOCAL else f"cluster at {address}"
    own = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == own)
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    patience = 0.0 if address == LOCAL else HEAD_PATIENCE_S
    return [
        Endpoint(
            f"this node's raylet of the Ray {whose}", node["NodeManagerAddress"], node["NodeManagerPort"], 0
        ),
        Endpoint(f"the head of the Ray {whose}", host.strip("[]"), int(port), patience),
    ]


def _advice(address: str) -> str:
    again = "What is committed stays: run the same command again"
    if address == LOCAL:
        return again
    return (
        "See that it is up (`ray status`) and, where it wants a token, that RAY_AUTH_MODE=token is set. "
        f"{again}, or without RAY_ADDRESS, which starts a Ray on this machine"
    )


@contextmanager
def remote_arguments() -> Iterator[None]:
    """Lets a step have limits of retries, which 2.60 deprecates without naming what replaces them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", DeprecationWarning)
        yield


def run_tasks(function: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
    """`function` of every task, in order, each on one core of the cluster of `connected`.

    A task may run twice, where its process died: it must give the same again. Tasks and what they return
    are pickled, and small.
    """

    def run(batch: pa.Table) -> pa.Table:
        number, pickled = batch["number"][0].as_py(), batch["task"][0].as_py()
        return pa.table({"number": [number], "result": [pickle.dumps(function(pickle.loads(pickled)))]})

    items = [{"number": number, "task": pickle.dumps(task)} for number, task in enumerate(tasks)]
    if not items:
        return []
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised too
    ds: ray.data.Dataset = ray.data.from_items(items, override_num_blocks=len(items))
    with remote_arguments():
        one: Any = {"batch_size": 1, "batch_format": "pyarrow", "max_retries": RETRIES}
        ds = ds.map_batches(run, num_cpus=1, **one)
    found = {row["number"]: pickle.loads(row["result"]) for row in ds.iter_rows()}
    return [found[number] for number in range(len(tasks))]
