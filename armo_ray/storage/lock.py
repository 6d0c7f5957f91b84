"""One run at a time in an output: a file that names the run that has it, renewed while that lives.

A run that finds the file waits until it knows: the owner's process is gone from this machine, or the file was
not renewed for `STALE_S`, and the output is free; or it is renewed meanwhile, and the run stops with the
owner's name. Commits stay exactly-once without it: it saves the work of two runs that do the same.
"""

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.storage.commits import now, repair_advice, to_json
from armo_ray.storage.records import OWNER, DamagedError, parse
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)

LOCK = "_lock.json"
RENEW_S = 15.0
STALE_S = 60.0
_LOOK_S = 2.0


@contextmanager
def held(store: Store) -> Iterator[None]:
    """Hold the output. Raises ConfigError where another run does. Where another run took it meanwhile, for this one was
    away for a minute, SIGTERM stops this one."""
    owner = {"run": uuid.uuid4().hex, **_whereabouts(), "pid": os.getpid(), "since": now()}
    while not (store.create(LOCK, _renewed(owner)) or _taken_over(store, owner)):
        pass
    ended = threading.Event()
    renewer = threading.Thread(target=_renew, args=(store, owner, ended), daemon=True)
    renewer.start()
    try:
        yield
    finally:
        ended.set()
        renewer.join()
        if _is_ours(store, owner):
            store.delete(LOCK)


def _whereabouts() -> dict[str, str]:
    """By what a process id means the same process: the machine and, in a container, its own count of them."""
    space = Path("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "space": os.readlink(space) if space.is_symlink() else ""}


def _renewed(owner: dict[str, Any]) -> bytes:
    return to_json({**owner, "renewed": now()})


def _is_ours(store: Store, owner: dict[str, Any]) -> bool:
    return bool((read_owner(store) or {}).get("run") == owner["run"])


def read_owner(store: Store) -> dict[str, Any] | None:
    """What the lock says of the run that has the output, None where it is free. Raises DamagedError."""
    try:
        return parse(store.read(LOCK), OWNER)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedError(f"{store.uri}/{LOCK}: damaged: {error}. {repair_advice(store)}") from error


def _renew(store: Store, owner: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(RENEW_S):
        try:
            if not _is_ours(store, owner):
                logger.error("%s: another run has the output now: stopping", store.path(LOCK))
                os.kill(os.getpid(), signal.SIGTERM)
                return
            store.write(LOCK, _renewed(owner))
        except (OSError, RuntimeError, DamagedError) as error:
            logger.warning("%s: cannot be renewed: %s", store.path(LOCK), error)


def _taken_over(store: Store, owner: dict[str, Any]) -> bool:
    """Whether the lock of a run that is gone is now ours; raises ConfigError where the run that has it is alive."""
    first = read_owner(store)
    if first is None:
        return False
    if _is_gone(first):
        logger.info("%s was left by %s, which is gone", store.path(LOCK), _told(first))
    else:
        logger.info("%s: held by %s: waiting %g s for a sign of it", store.path(LOCK), _told(first), STALE_S)
        for _ in range(int(STALE_S / _LOOK_S)):
            time.sleep(_LOOK_S)
            found = read_owner(store)
            if found is None:
                return False
            if found != first:
                raise ConfigError(
                    f"output {store.uri} is being written by another run: {_told(found)}. Wait for its end, or stop it"
                )
    if read_owner(store) != first:
        return False
    store.write(LOCK, _renewed(owner))
    time.sleep(_LOOK_S)  # of several that came to this point the last one stays
    return _is_ours(store, owner)


def _told(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']}, running since {owner['since']}"


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that has ended."""
    if any(owner.get(name) != value for name, value in _whereabouts().items()):
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
