"""The journal of a unit: every reply as it arrived, so that a run that is stopped or killed pays for none twice.

It is kept in `_journal/` of the output, also once the unit is committed: what was paid for can be read again.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

from armo_ray.endpoint.reply import Reply
from armo_ray.storage.store import Store

JOURNAL = "_journal"
_MOST = 64  # replies of an object
_EVERY_S = 1.0  # between objects


def request_key(
    model: str, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any], order: int, sample: int
) -> str:
    """The key of a request: equal if all is equal that its reply may depend on."""
    request = {"model": model, "messages": list(messages), "options": dict(options)}
    text = json.dumps([request, order, sample], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Entry(NamedTuple):
    """What a journal says of a request."""

    reply: Reply | None  # None: it was set aside, to be asked for again
    reason: str | None = None  # why the reply gives no verdict
    retried: int = 0  # how many replies were set aside before


_NONE = Entry(None)


class Journal:
    """The journal of a unit, read and added to by one attempt at it; two attempts write files of their own.

    On a disk, a reply is in the file once `add` returns, and stays there if the process is killed. Object stores cannot
    append: a process that is killed loses the replies since the last object, of a second at most.
    """

    def __init__(self, store: Store, unit: str) -> None:
        self.store = store
        self.folder = f"{JOURNAL}/{unit}"
        self.attempt = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        self.lines: list[bytes] = []
        self.objects = 0
        self.flushed = time.monotonic()
        self.file: int | None = None

    def read(self) -> dict[str, Entry]:
        """The entries by key."""
        entries: dict[str, Entry] = {}
        for name in sorted(self.store.list_names(self.folder)):
            for line in self.store.read(f"{self.folder}/{name}").splitlines():
                try:
                    values = json.loads(line)
                    reply = values["reply"] and Reply.from_dict(values["reply"])
                    before = entries.get(values["key"], _NONE)
                    entries[values["key"]] = Entry(reply, values["reason"], before.retried + (reply is None))
                except (ValueError, TypeError, KeyError):  # the process was killed while it wrote this line
                    continue
        return entries

    def add(self, key: str, reply: Reply, reason: str | None) -> None:
        """Add a reply, with the reason why it gives no verdict, if so."""
        self._write(key, reply, reason)

    def retry(self, reasons: Container[str]) -> None:
        """Set aside the replies that give no verdict for one of these reasons: they are asked for again."""
        for key, entry in self.read().items():
            if entry.reply is not None and entry.reason in reasons:
                self._write(key, None, None)

    def _write(self, key: str, reply: Reply | None, reason: str | None) -> None:
        entry = {"key": key, "reply": reply and reply.to_dict(), "reason": reason}
        line = json.dumps(entry, ensure_ascii=True).encode() + b"\n"
        if self.store.local:
            if self.file is None:
                path = self.store.path(f"{self.folder}/{self.attempt}.jsonl")
                os.makedirs(os.path.dirname(path), exist_ok=True)
                self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            while line:  # a full disk raises OSError
                line = line[os.write(self.file, line) :]
            return
        self.lines.append(line)
        if len(self.lines) >= _MOST or time.monotonic() - self.flushed >= _EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        self.flushed = time.monotonic()
        if self.lines:
            self.store.write(f"{self.folder}/{self.attempt}-{self.objects:06d}.jsonl", b"".join(self.lines))
            self.objects += 1
            self.lines = []

    def close(self) -> None:
        """Write what is not written yet, and close the file."""
        self.flush()
        if self.file is not None:
            os.close(self.file)
            self.file = None
