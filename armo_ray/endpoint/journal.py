"""The journal of a unit: every reply as it arrived, so that a run that is stopped or killed pays for none twice.

It is kept in `_journal/` of the output, also once the unit is committed: what was paid for can be read again.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

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

    def read(self) -> dict[str, Reply]:
        """The replies by key; of several with one key, the latest."""
        replies = {}
        for name in sorted(self.store.list_names(self.folder)):
            for line in self.store.read(f"{self.folder}/{name}").splitlines():
                try:
                    entry = json.loads(line)
                    replies[str(entry["key"])] = Reply.from_dict(entry["reply"])
                except (ValueError, TypeError, KeyError):  # the process was killed while it wrote this line
                    continue
        return replies

    def add(self, key: str, reply: Reply) -> None:
        """Add a reply."""
        line = json.dumps({"key": key, "reply": reply.to_dict()}, ensure_ascii=True).encode() + b"\n"
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
