"""A chat endpoint in a process of its own that counts requests and fails on request.

`python -m tests.support.fake_endpoint --port 0` prints its URL. POST /_fake takes settings: `text` and `model` of the
replies, `delay_s`, and `faults`, a list of {"status": 429, "headers": {...}, "text": ...} that the next requests get,
one each; {"drop": true} closes the connection. GET /_fake tells what was counted.
"""

import argparse
import asyncio
import hashlib
import json
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from tests.support.paths import ROOT


class FakeEndpoint:
    """Replies to every request with the same text."""

    def __init__(self, delay_s: float) -> None:
        self.settings: dict[str, Any] = {"text": "[[A]]", "model": "fake", "delay_s": delay_s, "faults": []}
        self.by_key: Counter[str] = Counter()
        self.in_flight = self.most = self.answered = 0

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.by_key[hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()] += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        fault = self.settings["faults"].pop(0) if self.settings["faults"] else None
        try:
            await asyncio.sleep(self.settings["delay_s"])
        finally:
            self.in_flight -= 1
        return self._reply(body) if fault is None else self._fault(request, fault)

    def _reply(self, body: Any) -> web.Response:
        self.answered += 1
        text = self.settings["text"]
        prompt = sum(len(str(message["content"]).split()) for message in body["messages"])
        return web.json_response(
            {
                "model": self.settings["model"],
                "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": prompt, "completion_tokens": len(text.split())},
            }
        )

    def _fault(self, request: web.Request, fault: Any) -> web.Response:
        if fault.get("drop"):
            assert request.transport is not None
            request.transport.close()
        headers, text = fault.get("headers"), fault.get("text", "a fault")
        if fault.get("echo"):
            text += request.headers.get("Authorization", "")
        return web.Response(status=fault.get("status", 200), headers=headers, text=text)

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self.settings["model"]}]})

    async def control(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            self.settings |= await request.json()
            self.by_key.clear()
            self.most = self.answered = 0
        counted = {"most_in_flight": self.most, "answered": self.answered, "by_key": dict(self.by_key)}
        return web.json_response({"requests": self.by_key.total(), **counted})


@contextmanager
def fake_endpoint(*options: str) -> Iterator[str]:
    """The URL of a server that runs until the context ends."""
    command = [sys.executable, "-m", "tests.support.fake_endpoint", "--port", "0", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def control(url: str, **settings: Any) -> dict[str, Any]:
    """Change settings and begin to count anew; without any, what was counted."""
    data = json.dumps(settings).encode() if settings else None
    with urllib.request.urlopen(f"{url}/_fake", data=data, timeout=10) as response:
        counted: dict[str, Any] = json.load(response)
    return counted


async def _serve(port: int, delay_s: float) -> None:
    fake, app = FakeEndpoint(delay_s), web.Application()
    app.router.add_post("/v1/chat/completions", fake.chat)
    app.router.add_get("/v1/models", fake.models)
    app.router.add_route("*", "/_fake", fake.control)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-s", type=float, default=0.0)
    given = parser.parse_args()
    asyncio.run(_serve(given.port, given.delay_s))
