"""A proxy before an S3 server that breaks requests and counts them.

It passes every header on as it came, `Host` too, which the client's signature covers: the server sees the address
of the proxy. One request is one connection.
"""

import asyncio
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from urllib.parse import urlsplit

# Faults by name. Those of REFUSED are answers of the proxy's own; the others break the exchange with the server.
REFUSED = {
    "slowdown": (503, "SlowDown"),
    "unavailable": (503, "ServiceUnavailable"),
    "throttled": (429, "TooManyRequests"),
    "internal": (500, "InternalError"),
    "hidden": (200, "InternalError"),  # an error in an answer that began well, as a completion may end
}
RESET = "reset"  # before the server sees the request
LOST = "lost"  # after it has done what was asked
TRUNCATED = "truncated"  # in the middle of the answer's body
SLOW = "slow"  # the body in pieces, with pauses
SILENT = "silent"  # no answer
EVERY = "every"  # a kind of request that stands for all


class FaultProxy:
    """What to break, and what was seen. Its fields may be changed at any time."""

    def __init__(self, server: str, seed: int) -> None:
        self.host, self.port = urlsplit(server).hostname, urlsplit(server).port
        self.endpoint = ""
        self.down = False
        self.chances: dict[tuple[str, str], float] = {}  # by kind of request and fault
        self.next: list[
            tuple[str, str]
        ] = []  # faults that happen once, in this order, before those by chance
        self.seen: Counter[str] = Counter()  # requests by kind
        self.faults: Counter[str] = Counter()  # by name
        self.failed = 0  # requests that found no server
        self.sent: Counter[str] = Counter()  # bytes of bodies by kind of request
        self._random = random.Random(seed)

    def fault_of(self, kind: str) -> str | None:
        if self.next and self.next[0][0] in (kind, EVERY):
            return self.next.pop(0)[1]
        chosen = [
            fault
            for (of, fault), chance in self.chances.items()
            if of in (kind, EVERY) and self._random.random() < chance
        ]
        return chosen[0] if chosen else None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            if self.down:
                self.faults["down"] += 1
                _reset(writer)
                return
            head = await reader.readuntil(b"\r\n\r\n")
            if b"expect: 100-continue" in head.lower():
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                head = re.sub(rb"(?i)expect: 100-continue\r\n", b"", head)
            body = await reader.readexactly(_length(head))
            kind = kind_of(head)
            self.seen[kind] += 1
            fault = self.fault_of(kind)
            if fault is not None:
                self.faults[fault] += 1
            await self._answer(writer, head, body, kind, fault)
        writer.close()

    async def _answer(
        self, writer: asyncio.StreamWriter, head: bytes, body: bytes, kind: str, fault: str | None
    ) -> None:
        if fault == RESET:
            _reset(writer)
            return
        if fault == SILENT:
            await asyncio.sleep(60)
        elif fault in REFUSED:
            refusal = _refusal(*REFUSED[fault])
            writer.write(refusal.partition(b"<?xml")[0] if kind == "head" else refusal)
        else:
            answer = await self._ask(head + body)
            if fault == LOST:
                _reset(writer)
                return
            await self._pass_on(writer, answer, kind, fault)
        await writer.drain()

    async def _ask(self, request: bytes) -> bytes:
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port)
        except OSError:
            self.failed += 1
            raise
        writer.write(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        answer = await reader.read()
        writer.close()
        return answer

    async def _pass_on(
        self, writer: asyncio.StreamWriter, answer: bytes, kind: str, fault: str | None
    ) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        if fault == TRUNCATED:
            body = body[: len(body) // 2]
        self.sent[kind] += len(body)
        writer.write(head + b"\r\n\r\n")
        piece = max(len(body) // 10, 1) if fault == SLOW else max(len(body), 1)
        for start in range(0, len(body), piece):
            writer.write(body[start : start + piece])
            await writer.drain()
            await asyncio.sleep(0.02 if fault == SLOW else 0)


def kind_of(head: bytes) -> str:
    """What a request asks for, by its first line."""
    method, target = head.split(b" ", 2)[:2]
    query = urlsplit(target.decode()).query
    if method == b"GET":
        return "list" if "list-type=" in query else "get"
    if method == b"POST":
        return "complete" if "uploadId=" in query else "delete" if "delete" in query else "upload"
    return "part" if method == b"PUT" and "uploadId=" in query else method.decode().lower()


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    return int(found[1]) if found else 0


def _refusal(status: int, code: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
    head = f"HTTP/1.1 {status} Refused\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as a killed process or a firewall does."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def _end() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def fault_proxy(server: str, seed: int = 0) -> Iterator[FaultProxy]:
    """A proxy on loopback before a server, until the context ends."""
    proxy, ready, loop = FaultProxy(server, seed), Event(), asyncio.new_event_loop()

    async def listen() -> None:
        listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 20)
        proxy.endpoint = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        ready.set()

    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(listen(), loop).result(10)
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(_end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
