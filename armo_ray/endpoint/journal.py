"""The replies of a unit, kept while it is made, so that none is paid twice.

Every attempt at a unit writes files of its own below `_journal/UNIT/`, each line a key and its reply. On a disk a reply
is one write, which survives the death of the process. An object store gets a file a second, or for every 64 replies.
"""

import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

from armo_ray.endpoint.reply import Reply
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.store import Store

FOLDER = "_journal"
_EVERY_S, _AT_MOST = 1.0, 64


def request_key(
    model: str,
    messages: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    order: int,
    sample: int,
) -> str:
    """64 hex digits that identify a request by its content."""
    content = json.dumps(
        [model, list(messages), options, order, sample], sort_keys=True, separators=(",", ":"), default=dict
    )
    return hashlib.sha256(content.encode()).hexdigest()


class Entry(NamedTuple):
    """What a journal says of a request."""

    reply: Reply | None  # None: it was set aside, and is asked for again
    reason: str | None = None  # why the reply gives no verdict
    retried: int = 0  # how many replies were set aside


_NONE = Entry(None)


class Journal:
    """The replies of one attempt at a unit, and those of earlier ones. May be used by several threads."""

    def __init__(self, store: Store, unit: str) -> None:
        self._store = store
        self._folder = f"{FOLDER}/{unit}"
        self._attempt = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        self._files = 0
        self._lines: list[bytes] = []
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._timer: threading.Timer | None = None
        self._error: Exception | None = None
        self._descriptor: int | None = None

    def read(self) -> dict[str, Entry]:
        """All entries so far, by key; of several replies, the first that was not set aside.

        A torn or damaged line is left out: its request is sent again.
        """
        entries: dict[str, Entry] = {}
        names = [f"{self._folder}/{name}" for name in sorted(self._store.list_names(self._folder))]
        for content in in_parallel(self._store.read, names):
            for line in content.split(b"\n"):
                if (pair := _parsed(line)) is not None:
                    _enter(entries, *pair)
        return entries

    def add(self, key: str, reply: Reply, reason: str | None = None) -> None:
        """Keep a reply, and why it gives no verdict if so. Raises what an earlier write to the storage raised."""
        self._add({"key": key, "reason": reason, "reply": reply.to_dict()})

    def set_aside(self, reasons: Container[str]) -> None:
        """Set aside the replies that give no verdict for one of these reasons, to be asked for again."""
        for key, entry in self.read().items():
            if entry.reply is not None and entry.reason in reasons:
                self._add({"key": key, "reason": None, "reply": None})

    def _add(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        with self._lock:
            self._raise()
            if self._store.local:
                self._append(line)
                return
            self._lines.append(line)
            if len(self._lines) == _AT_MOST:  # one thread is enough, however slow the store is
                self._start(0.0)
            elif len(self._lines) == 1:
                self._start(_EVERY_S)

    def flush(self) -> None:
        """Return when all replies are stored."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._write()
        with self._lock:
            self._raise()
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _append(self, line: bytes) -> None:
        if self._descriptor is None:
            path = self._store.path(f"{self._folder}/{self._name()}")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        if os.write(self._descriptor, line) != len(line):
            os.close(self._descriptor)
            self._descriptor = None  # what follows a torn line goes to a file of its own
            raise OSError(f"{self._store.uri}/{self._folder}: the disk is full")

    def _start(self, after_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(after_s, self._write_later)
        self._timer.daemon = True
        self._timer.start()

    def _write_later(self) -> None:
        try:
            self._write()
        except Exception as error:
            with self._lock:
                self._error = error

    def _write(self) -> None:
        with self._writing:
            with self._lock:
                lines, self._lines = self._lines, []
                name = self._name() if lines else ""
            if lines:
                self._store.write(f"{self._folder}/{name}", b"".join(lines))

    def _name(self) -> str:
        self._files += 1
        return f"{self._attempt}-{self._files:06}.jsonl"

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def _enter(entries: dict[str, Entry], key: str, entry: Entry) -> None:
    before = entries.get(key, _NONE)
    if entry.reply is None:
        entries[key] = Entry(None, None, before.retried + 1)
    elif before.reply is None:
        entries[key] = entry._replace(retried=before.retried)


def _parsed(line: bytes) -> tuple[str, Entry] | None:
    try:
        values = json.loads(line)
        reply = None if values["reply"] is None else Reply.from_dict(values["reply"])
        return str(values["key"]), Entry(reply, values["reason"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
