"""One command at a time writes an output: a file that names its owner, renewed while that lives.

A command that finds the file learns how its owner is. A process of this machine that lives and renews it: the command
stops at once and names the owner. One that has ended: the output is free. Of other owners it waits for a sign of life
for `STALE_S`, then the output is free. Commits stay exactly-once without it: it saves the work of two runs that do the
same, and keeps apart the commands that write files of the same names.
"""

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.storage.commits import COMMITS, now
from armo_ray.storage.json_files import OWNER, parse, to_json
from armo_ray.storage.parts import DATA, REJECTS, SCORES
from armo_ray.storage.records import DamagedError
from armo_ray.storage.retries import describe_error
from armo_ray.storage.store import Store, missing_directories, remove_empty

logger = logging.getLogger(__name__)

LOCK = "_lock.json"
RENEW_S = 15.0
STALE_S = 60.0
_LOOK_S = 2.0
_FOLDERS = (SCORES, REJECTS, COMMITS, DATA)


@dataclass(frozen=True)
class Held:
    """An output that this command holds."""

    store: Store
    owner: dict[str, Any]
    remains: (
        bool  # what is there may be deleted: its owner, of this machine, was killed, and marked it disposable
    )

    def is_ours(self) -> bool:
        """Whether it is still held, and no other command took it meanwhile."""
        return _is_ours(self.store, self.owner)


@contextmanager
def held(store: Store, command: str = "score", disposable: bool = False) -> Iterator[Held]:
    """Hold the output; what killed writers left there half-written is deleted, on a disk.

    Where another command took it meanwhile, for this one was away for a minute, SIGTERM stops this one.

    Raises ConfigError where another command holds it or left something of another kind, and where it cannot be written.

    Args:
        command: of armo-ray: score goes on with what another score left, and no other command does.
        disposable: what this process leaves when it is killed is of no use, and nobody else is writing it then.
    """
    owner = {
        "run": uuid.uuid4().hex,
        "command": command,
        "disposable": disposable,
        **_whereabouts(),
        "pid": os.getpid(),
        "began": _beginning_of(os.getpid()),
        "since": now(),
    }
    missing = missing_directories(store)
    try:
        remains = _acquire(store, owner)
        with _renewing(store, owner):
            store.sweep(_FOLDERS)
            yield Held(store, owner, remains)
    finally:
        remove_empty(missing)


@contextmanager
def _renewing(store: Store, owner: dict[str, Any]) -> Iterator[None]:
    """Renew a lock that was acquired, and release it at the end."""
    ended = threading.Event()
    renewer = threading.Thread(target=_renew, args=(store, owner, ended), daemon=True)
    renewer.start()
    try:
        yield
    finally:
        ended.set()
        renewer.join()
        _release(store, owner)


def _acquire(store: Store, owner: dict[str, Any]) -> bool:
    """Take the lock; tells whether it was that of a process that has ended, and left what is disposable."""
    while True:
        try:
            if store.create(LOCK, _renewed(owner)):
                return False
        except OSError as error:
            raise ConfigError(f"output {store.uri}: cannot be written: {describe_error(error)}") from error
        if before := _taken_over(store, owner):
            return before.get("disposable") is True and _is_gone(before)


def _release(store: Store, owner: dict[str, Any]) -> None:
    try:
        if _is_ours(store, owner):
            store.sweep(_FOLDERS)
            store.delete(LOCK)
    except (OSError, RuntimeError, ConfigError) as error:  # what was done under the lock is done
        logger.warning("%s: cannot be deleted: %s", store.path(LOCK), error)


def _whereabouts() -> dict[str, str]:
    """By what a process id means the same process: the machine since its start and, in a container, its own count."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    started = boot.read_text().strip() if boot.is_file() else ""
    return {
        "host": socket.gethostname(),
        "space": f"{started} {os.readlink(space) if space.is_symlink() else ''}",
    }


def _beginning_of(pid: int) -> str | None:
    """When a process of this machine began, in ticks; "" where the system does not tell, None where it has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (PermissionError, OverflowError):
        pass
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except OSError:
        return ""
    return None if state in "ZX" else fields[18]  # a zombie has ended


def _renewed(owner: dict[str, Any]) -> bytes:
    return to_json({**owner, "renewed": now()})


def read_owner(store: Store) -> dict[str, Any] | None:
    """What the lock says of the run that has the output, None where it is free. Raises DamagedError."""
    try:
        return parse(store.read(LOCK), OWNER)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedError(
            f"{store.uri}/{LOCK}: damaged: {error}. Delete that file if no command is writing the output, as "
            f"armo-ray verify {store.uri} --repair does"
        ) from error


def _is_ours(store: Store, owner: dict[str, Any]) -> bool:
    return bool((read_owner(store) or {}).get("run") == owner["run"])


def _renew(store: Store, owner: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(RENEW_S):
        try:
            if not _is_ours(store, owner):
                logger.error("%s: another command has the output now: stopping", store.path(LOCK))
                os.kill(os.getpid(), signal.SIGTERM)
                return
            store.write(LOCK, _renewed(owner))
        except (OSError, RuntimeError, ConfigError) as error:
            logger.warning("%s: cannot be renewed: %s", store.path(LOCK), error)


def _taken_over(store: Store, owner: dict[str, Any]) -> dict[str, Any] | None:
    """The lock that is now ours, of an owner that is gone; None where somebody was faster, or released it.

    Raises ConfigError where its owner is alive, or wrote something of another kind.
    """
    first = read_owner(store)
    if first is None or not _is_free(store, first):
        return None
    _check_kind(store, first, owner)
    if read_owner(store) != first:
        return None
    store.write(LOCK, _renewed(owner))
    time.sleep(_LOOK_S)  # of several that came to this point the last one stays
    return first if _is_ours(store, owner) else None


def _is_free(store: Store, first: dict[str, Any]) -> bool:
    """Whether the owner of a lock is gone, False where it releases it. Raises ConfigError where it is alive."""
    if _is_gone(first):
        logger.info("%s was left by %s, which is gone", store.path(LOCK), _told(first))
        return True
    if _is_alive(first):
        raise ConfigError(_refusal(store, first))
    logger.info("%s: held by %s: waiting %g s for a sign of life", store.path(LOCK), _told(first), STALE_S)
    for _ in range(int(STALE_S / _LOOK_S)):
        time.sleep(_LOOK_S)
        found = read_owner(store)
        if found is None:
            return False
        if found != first:
            raise ConfigError(_refusal(store, found))
    return True


def _refusal(store: Store, owner: dict[str, Any]) -> str:
    return f"output {store.uri} is being written by another run: {_told(owner)}. Wait for its end, or stop it"


def _check_kind(store: Store, before: dict[str, Any], owner: dict[str, Any]) -> None:
    """Refuse what a command left that this one cannot go on with."""
    scoring = before.get("command", "score") == "score"
    if scoring != (owner["command"] == "score"):
        advice = "Run that again to go on with it" if scoring else "Delete it"
        raise ConfigError(
            f"output {store.uri} is the unfinished one of {_told(before)}, which is gone. {advice}, or choose another"
        )


def _told(owner: dict[str, Any]) -> str:
    command = owner.get("command", "score")
    return f"process {owner['pid']} on {owner['host']}, running since {owner['since']} (armo-ray {command})"


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that has ended."""
    if not _is_here(owner):
        return False
    began = _beginning_of(owner["pid"])
    return began is None or bool(began and owner.get("began") and began != owner["began"])


def _is_alive(owner: dict[str, Any]) -> bool:
    """Whether the owner is a process of this machine that lives, and still renews its lock."""
    if not _is_here(owner) or _beginning_of(owner["pid"]) != owner.get("began"):
        return False
    with suppress(KeyError, TypeError, ValueError):
        return abs((datetime.now(UTC) - datetime.fromisoformat(owner["renewed"])).total_seconds()) < STALE_S
    return False


def _is_here(owner: dict[str, Any]) -> bool:
    return all(owner.get(name) == value for name, value in _whereabouts().items())
