"""A run with a judge: read calls, ask an endpoint from a few actors, write and commit."""

import gc
import logging
import math
import os
import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy

from armo_ray.cluster.connect import RETRIES, connected, remote_arguments
from armo_ray.endpoint.limits import HEARTBEAT_S, Allowance, Shares, Usage
from armo_ray.judge.asker import Asker
from armo_ray.judge.job import JudgeJob, Serve
from armo_ray.judge.options import JudgeOptions
from armo_ray.judge.served import Server
from armo_ray.judge.stages import Halt, read_calls, write_verdicts
from armo_ray.score import graph, passes, shared_paths
from armo_ray.score.card import Card
from armo_ray.score.gpus import gpus_of_nodes, room_for, wait_for_gpus
from armo_ray.score.passes import Committed
from armo_ray.score.progress import Progress, every
from armo_ray.signals import OutOfTime, gently
from armo_ray.storage import resume
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span, count_units

logger = logging.getLogger(__name__)

_ASKERS = 4
_TELL_EVERY_S = 30.0
_UNITS = 3  # at an asker at once: two are asked about, one is written; Ray Data queues as many more
_GRACE_S = 25.0  # for replies in flight when a run is interrupted; a spot machine has 30 s


class Secret:
    """A text that is not shown."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "***"


class ClusterShares(Shares):
    """The shares of all askers of a run, in an actor; its clock is the only one."""

    ended = False

    def renew_now(self, client: str, holds: int, wants: int, used: Usage, pause_s: float) -> Allowance:
        """`renew` at the present time."""
        allowance = self.renew(client, holds, wants, time.monotonic(), used, pause_s)
        return allowance._replace(stop=True) if self.ended else allowance

    def told(self) -> tuple[Usage, float]:
        """What all askers used, and its cost."""
        return self.used, self.cost

    def end(self) -> bool:
        """Stop all askers. Returns whether none has a request in flight any more."""
        self.ended = True
        self._forget(time.monotonic())
        return not any(client.reserved for client in self._clients.values())


class AskingActor:
    """An asker in a process of its own, which writes too; the driver passes the key of the endpoint on."""

    def __init__(self, job: JudgeJob, shares: Any, secret: Secret) -> None:
        if job.serve is not None:
            self.server = Server(job.endpoint.model, job.serve.gpus, job.serve.arguments)
            threading.Thread(target=self._die_with_server, daemon=True).start()
            job = replace(job, endpoint=replace(job.endpoint, url=self.server.url))
        if job.endpoint.key_variable:
            os.environ[job.endpoint.key_variable] = secret.text

        async def renew(*state: Any) -> Allowance:
            allowance: Allowance = await shares.renew_now.remote(*state)
            return allowance

        self.asker = Asker(job, renew)
        gc.freeze()  # modules are permanent: garbage collection need not visit them

    def __call__(self, table: pa.Table) -> pa.Table:
        """Ask about a unit and commit it. A task for that would take a process of its own, and its start a second."""
        return graph.result(write_verdicts(self.asker(table), self.asker.job))

    def _die_with_server(self) -> None:
        """Ray starts the actor again, with a new server; the journal keeps the replies."""
        self.server.process.wait()
        os._exit(1)


def execute(
    store: Store, job: JudgeJob, spans: list[Span], standing: resume.Standing, options: JudgeOptions
) -> None:
    """Commit every unit that is left. Raises OutOfTime if --max-cost is reached, RuntimeError if the endpoint fails."""
    began, left = time.time(), standing.left
    size = sum(span.source_bytes for span in left)
    with connected() as joined:
        if joined:
            models = [(job.tokenizer, None)] if job.tokenizer and Path(job.tokenizer).is_dir() else []
            shared_paths.probe(store, models, [span.shard for span in left])
        actors = _servers(job.serve, options.wait) if job.serve else min(_ASKERS, options.in_flight)
        in_flight = options.in_flight * (actors if job.serve else 1)
        shares: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(ClusterShares)
        held = shares.remote(
            in_flight, options.max_cost or math.inf, options.input_price, options.output_price
        )
        card = Card(store, job, options.input, standing.committed, count_units(left))
        progress = Progress(
            size, began, {"output": store.uri, "model": job.endpoint.model}, lambda: (0, 0), True
        )

        def work(left: list[Span]) -> Iterator[Committed]:
            for result in _results(job, left, held, actors):
                if isinstance(result, Halt):
                    _wait_for_replies(held, job.endpoint.timeout_s)
                    interruption.check()
                unit = _committed(result, job.endpoint.key_variable)
                progress.update(unit)
                yield unit

        def work_again(left: list[Span]) -> Iterator[Committed]:
            again = list(work(left))
            if not again:
                raise RuntimeError(f"{len(left)} shards have units that fail; the log says why")
            yield from again

        passes.begin(store, standing)
        told = every(_TELL_EVERY_S, "telling of replies", lambda: _tell(held))
        gentle = gently(lambda: _end(held), _GRACE_S)
        with card.drafted(progress), progress, told, gentle as interruption:
            passes.commit_all(store, job.fingerprint, spans, left, work, work_again)


def _tell(shares: Any) -> None:
    """Log the replies so far: a unit may take long."""
    used, cost = ray.get(shares.told.remote(), timeout=_TELL_EVERY_S)
    logger.info(
        "%d replies so far: %d tokens in prompts, %d written, cost %.2f",
        used.requests,
        used.prompt_tokens,
        used.completion_tokens,
        cost,
    )


def _committed(result: Committed | Halt, key_variable: str | None) -> Committed:
    """A committed unit. Raises what ends the run if it was left."""
    if isinstance(result, Committed):
        return result
    if result.kind == "cost":
        raise OutOfTime(result.message)
    key = f"is the key in {key_variable} valid?" if key_variable else "does it need a key (--api-key-env)?"
    raise RuntimeError(
        f"{result.message}. Check the endpoint ({key}), then run the same command again: what is committed and "
        f"what was answered stays"
    )


def _end(shares: Any) -> None:
    """Stop all askers, which keep the replies to requests in flight."""
    logger.info("stopping: waiting %g s for the replies in flight; Ctrl-C again ends at once", _GRACE_S)
    ray.get(shares.end.remote())


def _wait_for_replies(shares: Any, seconds: float) -> None:
    """Wait until no asker has a request in flight: its reply is paid for, and would be lost with the asker."""
    until = time.monotonic() + seconds
    while not ray.get(shares.end.remote()) and time.monotonic() < until:
        time.sleep(HEARTBEAT_S)


def _servers(serve: Serve, minutes: float) -> int:
    """How many servers the cluster has room for. Raises ConfigError if it has room for none, after a while."""
    if not serve.gpus:
        return 1
    if not room_for(serve.gpus, gpus_of_nodes()):
        wait_for_gpus(1, serve.gpus, minutes)
    return room_for(serve.gpus, gpus_of_nodes())


def _results(job: JudgeJob, left: list[Span], shares: Any, actors: int) -> Iterator[Committed | Halt]:
    key = os.environ.get(job.endpoint.key_variable or "", "").strip()
    arguments = {"job": job, "shares": shares, "secret": Secret(key)}

    def on_actors(ds: ray.data.Dataset) -> ray.data.Dataset:
        with remote_arguments():
            return ds.map_batches(
                AskingActor,
                fn_constructor_kwargs=arguments,
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(
                    size=actors, max_concurrent_calls_per_actor=_UNITS, enable_true_multi_threading=True
                ),
                num_cpus=0,  # it waits most of the time
                num_gpus=job.serve.gpus if job.serve else 0,
                max_restarts=-1,
                max_task_retries=RETRIES,
            )

    return graph.results(left, partial(_read, job=job), on_actors)


def _read(batch: pa.Table, job: JudgeJob) -> Iterator[pa.Table]:
    for pickled in batch["span"].to_pylist():
        yield from read_calls(pickle.loads(pickled), job)
