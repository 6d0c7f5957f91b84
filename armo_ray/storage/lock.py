"""One run at a time in an output: a file that names the run that has it, renewed while that lives.

A run that finds the file waits until it knows: the owner's process is gone from this machine, or the file was
not renewed for `STALE_S`, and the output is free; or it is renewed meanwhile, and the run stops with the
owner's name. Commits stay exactly-once without it: it saves the work of two runs that do the same.
"""

import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.storage.commits import now, to_json
from armo_ray.storage.retries import STORAGE_ERRORS
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)

LOCK = "_lock.json"
RENEW_S = 15.0
STALE_S = 60.0
_LOOK_S = 2.0


@contextmanager
def held(store: Store) -> Iterator[None]:
    """Hold the output. Raises ConfigError where another run does."""
    owner = {"run": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "since": now()}
    while not store.create(LOCK, _renewed(owner)):
        _wait_for_end(store)
    ended = threading.Event()
    renewer = threading.Thread(target=_renew, args=(store, owner, ended), daemon=True)
    renewer.start()
    try:
        yield
    finally:
        ended.set()
        renewer.join()
        if (store.read_json(LOCK) or {}).get("run") == owner["run"]:
            store.delete(LOCK)


def _renewed(owner: dict[str, Any]) -> bytes:
    return to_json({**owner, "renewed": now()})


def _renew(store: Store, owner: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(RENEW_S):
        try:
            store.write(LOCK, _renewed(owner))
        except (*STORAGE_ERRORS, RuntimeError) as error:
            logger.warning("%s: cannot be renewed: %s", store.path(LOCK), error)


def _wait_for_end(store: Store) -> None:
    """Return when the run that has the lock is gone, its lock deleted; raise ConfigError when it is alive."""
    first = store.read_json(LOCK)
    if first is None:
        return
    told = f"process {first['pid']} on {first['host']}, running since {first['since']}"
    if _is_gone(first):
        logger.info("%s was left by %s, which is gone", store.path(LOCK), told)
    else:
        logger.info("%s: held by %s: waiting %g s for a sign of it", store.path(LOCK), told, STALE_S)
        for _ in range(int(STALE_S / _LOOK_S)):
            threading.Event().wait(_LOOK_S)
            found = store.read_json(LOCK)
            if found is None:
                return
            if found != first:
                raise ConfigError(
                    f"output {store.uri} is being written by another run: {told}. Wait for its end, or stop it"
                )
    store.delete(LOCK)


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that has ended."""
    if owner["host"] != socket.gethostname():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
