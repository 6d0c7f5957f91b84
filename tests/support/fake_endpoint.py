"""A chat endpoint in a process of its own that counts requests and fails on request.

`python -m tests.support.fake_endpoint --port 0` prints its URL on the first line. GET /counts tells what was counted,
and when requests arrived and left, by time.monotonic.
POST /_fake takes settings, which hold from then on, and begins to count anew:

- `text`, `finish_reason`, `refusal` and `model` of the replies, and `delay_s`;
- `rule`: "text" replies `text` as it is; else its `{}` is filled: "longer" with A or B, the longer one of the two
  groups of the pattern `answers` in the last message; "rating" with 1 to 10 from a hash of the messages; "drawn" with
  one of `choices` from a hash of the whole request, and `{key}` with that hash;
- `faults`: a list that the next requests get, one each: {"status": 429, "headers": {...}, "text": ...}, {"drop": true}
  closes the connection, {"torn": true} ends in the middle of the JSON, {"reply": {...}} has settings of its own;
- `broken`: a request that holds this text gets 500, as often as it is sent;
- `key`: requests without it get 401;
- `marked`: faults by text: a request that holds the text gets the fault, as often as it is sent;
- `adds_bos` and `activated` of the servers of reward models (see `fake_rewards`).
"""

import argparse
import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from aiohttp import web

from armo_ray.endpoint.rewards import PROTOCOLS
from tests.support import fake_rewards
from tests.support.paths import ROOT

SETTINGS: dict[str, Any] = {
    "text": "[[A]]",
    "finish_reason": "stop",
    "refusal": None,
    "model": "fake",
    "delay_s": 0.0,
    "rule": "text",
    "answers": r"(?s)\[The Start of Assistant A's Answer\](.*?)\[The End.*?"
    r"\[The Start of Assistant B's Answer\](.*?)\[The End",
    "faults": [],
    "broken": None,
    "key": None,
    "marked": {},
    "choices": ["A", "B", "tie"],
    "adds_bos": False,
    "activated": False,
}


class FakeEndpoint:
    """Replies to all requests by one rule."""

    def __init__(self, settings: Mapping[str, Any], log: str | None = None) -> None:
        self.settings: dict[str, Any] = SETTINGS | dict(settings)
        self.log = open(log, "a", buffering=1) if log else None  # noqa: SIM115 - as long as the server lives
        self.by_key: Counter[str] = Counter()
        self.answered_by_key: Counter[str] = Counter()
        self.arrived: list[float] = []
        self.left: list[float] = []
        self.in_flight = self.most = self.answered = self.prompt_tokens = self.completion_tokens = 0

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, self._reply)

    async def rewards(self, request: web.Request) -> web.StreamResponse:
        protocol = request.path.split("/")[1]

        def answer(body: Any, settings: Mapping[str, Any]) -> Any:
            self.answered += 1
            return fake_rewards.answer(protocol, body, settings)

        return await self._answer(request, answer)

    async def _answer(
        self, request: web.Request, answer: Callable[[Any, Mapping[str, Any]], Any]
    ) -> web.StreamResponse:
        if refused := self._refused(request):
            return refused
        body = await request.json()
        key = key_of(body)
        self.by_key[key] += 1
        if self.log:
            self.log.write(f"{key}\n")
        self.arrived.append(time.monotonic())
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        fault = self._fault_of(body)
        try:
            await asyncio.sleep((self.settings | (fault or {}).get("reply", {}))["delay_s"])
        finally:
            self.in_flight -= 1
            self.left.append(time.monotonic())
        if fault is None or "reply" in fault:
            self.answered_by_key[key] += 1
            return web.json_response(answer(body, self.settings | (fault or {}).get("reply", {})))
        if fault.get("torn"):
            return web.Response(text=json.dumps(answer(body, self.settings))[:40])
        return _fault(request, fault)

    def _fault_of(self, body: Any) -> Any:
        if self.settings["broken"] and self.settings["broken"] in json.dumps(body):
            return {"status": 500}
        content = str(body["messages"]) if self.settings["marked"] else ""
        for text, fault in self.settings["marked"].items():
            if text in content:
                return fault
        return self.settings["faults"].pop(0) if self.settings["faults"] else None

    def _reply(self, body: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
        text = _text(body, settings)
        prompt = sum(len(str(message["content"]).split()) for message in body["messages"])
        completion = len(text.split())
        self.answered += 1
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        message = {"role": "assistant", "content": text, "refusal": settings["refusal"]}
        return {
            "model": settings["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": settings["finish_reason"]}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": completion},
        }

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    def _refused(self, request: web.Request) -> web.Response | None:
        key = self.settings["key"]
        if key is None or request.headers.get("Authorization") == f"Bearer {key}":
            return None
        return web.Response(status=401, text="no such key")

    async def models(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        return web.json_response({"object": "list", "data": [{"id": self.settings["model"]}]})

    async def control(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            self.settings |= await request.json()
            self.by_key.clear()
            self.answered_by_key.clear()
            self.arrived.clear()
            self.left.clear()
            self.most = self.answered = self.prompt_tokens = self.completion_tokens = 0
        return await self.counts(request)

    async def counts(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "requests": self.by_key.total(),
                "most_in_flight": self.most,
                "answered": self.answered,
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "by_key": dict(self.by_key),
                "answered_by_key": dict(self.answered_by_key),
                "arrived": self.arrived,
                "left": self.left,
            }
        )


def _fault(request: web.Request, fault: Mapping[str, Any]) -> web.Response:
    if fault.get("drop"):
        assert request.transport is not None
        request.transport.close()
    text = fault.get("text", "a fault")
    if fault.get("echo"):
        text += request.headers.get("Authorization", "")
    return web.Response(status=fault.get("status", 200), headers=fault.get("headers"), text=text)


def key_of(body: Any) -> str:
    """64 hex digits that identify a request by its content."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _text(body: Any, settings: Mapping[str, Any]) -> str:
    text: str = settings["text"]
    messages = body["messages"]
    if settings["rule"] == "drawn":
        key = key_of(body)
        return text.format(settings["choices"][int(key, 16) % len(settings["choices"])], key=key)
    if settings["rule"] == "longer":
        found = re.search(settings["answers"], str(messages[-1]["content"]))
        return text.format("A" if found is None or len(found[1]) >= len(found[2]) else "B")
    if settings["rule"] == "rating":
        digest = hashlib.sha256(json.dumps(messages).encode()).digest()
        return text.format(1 + digest[0] % 10)
    return text


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


def stop(url: str) -> None:
    """End the server at once, in the middle of its requests."""
    with suppress(OSError), urllib.request.urlopen(f"{url}/_stop", data=b"", timeout=10):
        pass


async def _end(_: web.Request) -> web.Response:
    os._exit(1)


async def _serve(port: int, settings: Mapping[str, Any], log: str | None) -> None:
    fake, app = FakeEndpoint(settings, log), web.Application()
    app.router.add_post("/v1/chat/completions", fake.chat)
    for protocol, rewards in PROTOCOLS.items():
        app.router.add_post(f"/{protocol}/{rewards.route}", fake.rewards)
    app.router.add_get("/v1/models", fake.models)
    app.router.add_get("/counts", fake.counts)
    app.router.add_get("/health", fake.health)
    app.router.add_post("/_stop", _end)
    app.router.add_route("*", "/_fake", fake.control)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    parent = os.getppid()
    while os.getppid() == parent:  # it ends with the tests, however they end
        await asyncio.sleep(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-s", type=float, default=0.0)
    parser.add_argument("--log", help="file that gets the key of each request as it comes")
    parser.add_argument("--settings", type=json.loads, default={}, help="as JSON, from the start")
    given = parser.parse_args()
    asyncio.run(_serve(given.port, {"delay_s": given.delay_s} | given.settings, given.log))
