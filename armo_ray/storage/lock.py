"""A lock that lets one command at a time write an output: a file that names its owner, renewed while the owner lives.

A command that finds the lock checks its owner. If it is a live process of this machine that renews the lock, the
command stops at once and names it. If it was a process of this machine that has ended, the output is free. Any other
owner has `STALE_S` to renew the lock; if it does not, the output is free.

Commits are exactly-once without the lock. It keeps two runs from doing the same work, and separates commands that write
files of the same names.
"""

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.storage.commits import COMMITS, now
from armo_ray.storage.json_files import OWNER, parse, to_json
from armo_ray.storage.parts import DATA, HIDDEN, PROMPTS, REJECTS, SCORES
from armo_ray.storage.records import DamagedError
from armo_ray.storage.retries import describe_error
from armo_ray.storage.store import Store, missing_directories, remove_empty

logger = logging.getLogger(__name__)

LOCK = "_lock.json"
RENEW_S = 15.0
STALE_S = 60.0
_LOOK_S = 2.0
FOLDERS = (SCORES, REJECTS, COMMITS, DATA, HIDDEN, PROMPTS)


@dataclass(frozen=True)
class Held:
    """An output that is locked by this command."""

    store: Store
    owner: dict[str, Any]
    remains: bool  # what is there may be deleted: left by a killed process of this machine that marked it disposable

    def is_ours(self) -> bool:
        """Whether this command still has the lock, and no other command took it over."""
        return _is_ours(self.store, self.owner)


@contextmanager
def held(
    store: Store, command: str = "score", disposable: bool = False, folders: Sequence[str] = FOLDERS
) -> Iterator[Held]:
    """Lock an output while the body runs.

    On a disk, the files that killed writers left half-written are deleted: those of a command whose lock is taken over
    before the body, those in `folders` after it.

    If this process is suspended for a minute, another command may take over the lock; then SIGTERM stops this one.

    Raises ConfigError if another command has the lock or left an unfinished output that `command` cannot continue, and
    if the output cannot be written.

    Args:
        command: the armo-ray command. Only score continues an unfinished output, and only one of score.
        disposable: whether the files that this process leaves if it is killed may be deleted by the next command.
        folders: those that the body writes to, besides the root. They are listed with all that is in them.
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
    ended = threading.Event()
    renewer = threading.Thread(target=_renew, args=(store, owner, ended), daemon=True)
    refused = False
    try:  # from before the lock is there: an interruption while it is taken releases it too
        try:
            before = _acquire(store, owner)
        except Exception:
            refused = True
            raise
        renewer.start()
        if before is not None:
            store.sweep(FOLDERS)
        yield Held(store, owner, before is not None and _may_delete(before))
    finally:
        ended.set()
        if renewer.is_alive():
            renewer.join()
        if not refused:
            _release(store, owner, folders)
        remove_empty(missing)


def _acquire(store: Store, owner: dict[str, Any]) -> dict[str, Any] | None:
    """Take the lock. Returns the owner that left it behind, or None if nobody did."""
    while True:
        try:
            if store.create(LOCK, _renewed(owner)):
                return None
        except OSError as error:
            raise ConfigError(f"output {store.uri}: cannot be written: {describe_error(error)}") from error
        if before := _taken_over(store, owner):
            return before


def _may_delete(before: dict[str, Any]) -> bool:
    """Whether the owner that left the lock behind has ended and marked its files as disposable."""
    return before.get("disposable") is True and _is_gone(before)


def _release(store: Store, owner: dict[str, Any], folders: Sequence[str]) -> None:
    try:
        if _is_ours(store, owner):
            store.sweep(folders)
            store.delete(LOCK)
    except (OSError, RuntimeError, ConfigError) as error:  # the work under the lock is complete
        logger.warning("%s: cannot be deleted: %s", store.path(LOCK), error)


def _whereabouts() -> dict[str, str]:
    """Where process ids identify a process: the host, its boot and its PID namespace."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    started = boot.read_text().strip() if boot.is_file() else ""
    return {
        "host": socket.gethostname(),
        "space": f"{started} {os.readlink(space) if space.is_symlink() else ''}",
    }


def _beginning_of(pid: int) -> str | None:
    """The start time of a process of this machine, in clock ticks; "" if unknown, None if the process has ended."""
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
    """The owner that the lock names, or None if the output is not locked. Raises DamagedError if it is damaged."""
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
                logger.error("%s: another command has taken the output: stopping", store.path(LOCK))
                os.kill(os.getpid(), signal.SIGTERM)
                return
            store.write(LOCK, _renewed(owner))
        except (OSError, RuntimeError, ConfigError) as error:
            logger.warning("%s: cannot be renewed: %s", store.path(LOCK), error)


def _taken_over(store: Store, owner: dict[str, Any]) -> dict[str, Any] | None:
    """Take over the lock of an owner that is gone. Returns that owner, or None if the lock has to be tried again.

    Raises ConfigError if the owner is alive, or left an unfinished output that this command cannot continue.
    """
    first = read_owner(store)
    if first is None or not _is_free(store, first):
        return None
    _check_kind(store, first, owner)
    if read_owner(store) != first:
        return None
    try:
        store.write(LOCK, _renewed(owner))
        time.sleep(_LOOK_S)  # of several commands that reach this point, the last to write has the lock
    except KeyboardInterrupt:
        if _is_ours(store, owner):
            store.write(LOCK, to_json(first))  # it says what may be deleted
        raise
    return first if _is_ours(store, owner) else None


def _is_free(store: Store, first: dict[str, Any]) -> bool:
    """Whether the owner of a lock is gone; False if it released the lock. Raises ConfigError if it is alive."""
    if _is_gone(first):
        logger.info("%s was left by %s, which has ended", store.path(LOCK), _described(first))
        return True
    if _is_alive(first):
        raise ConfigError(_refusal(store, first))
    logger.info(
        "%s: held by %s: waiting %g s for it to be renewed", store.path(LOCK), _described(first), STALE_S
    )
    for _ in range(int(STALE_S / _LOOK_S)):
        time.sleep(_LOOK_S)
        owner = read_owner(store)
        if owner is None:
            return False
        if owner != first:
            raise ConfigError(_refusal(store, owner))
    return True


def _refusal(store: Store, owner: dict[str, Any]) -> str:
    return f"output {store.uri} is being written by another command: {_described(owner)}. Wait until it ends or stop it"


def _check_kind(store: Store, before: dict[str, Any], owner: dict[str, Any]) -> None:
    """Raises ConfigError if the previous owner left an unfinished output that this command cannot continue."""
    scoring = before.get("command", "score") == "score"
    if scoring != (owner["command"] == "score"):
        advice = "Run that command again to finish it" if scoring else "Delete it"
        raise ConfigError(
            f"output {store.uri} was left unfinished by {_described(before)}, which has ended. {advice}, or choose "
            f"another output"
        )


def _described(owner: dict[str, Any]) -> str:
    command = owner.get("command", "score")
    return f"process {owner['pid']} on {owner['host']}, running since {owner['since']} (armo-ray {command})"


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether the owner is a process of this machine that has ended."""
    if not _is_here(owner):
        return False
    began = _beginning_of(owner["pid"])
    return began is None or bool(began and owner.get("began") and began != owner["began"])


def _is_alive(owner: dict[str, Any]) -> bool:
    """Whether the owner is a live process of this machine that still renews the lock."""
    if not _is_here(owner) or _beginning_of(owner["pid"]) != owner.get("began"):
        return False
    with suppress(KeyError, TypeError, ValueError):
        return abs((datetime.now(UTC) - datetime.fromisoformat(owner["renewed"])).total_seconds()) < STALE_S
    return False


def _is_here(owner: dict[str, Any]) -> bool:
    return all(owner.get(name) == value for name, value in _whereabouts().items())
