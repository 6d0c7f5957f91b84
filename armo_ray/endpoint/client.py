"""A client of an OpenAI-compatible endpoint, which sends again what failed for a while."""

import asyncio
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp

from armo_ray.endpoint.limits import Gate, Usage
from armo_ray.endpoint.reply import Failure, Reply
from armo_ray.errors import ConfigError

_REFUSED = {
    401: "the key is wrong or missing",
    403: "the key may not use it",
    404: "there is no such route or model",
}
_AGAIN = {408, 409, 425, 429}  # and 5xx
_OVERFLOW = (
    *("context_length_exceeded", "exceed_context_size", "maximum context length", "context size"),
    *("context window", "max_model_len", "prompt is too long", "longer than the maximum"),
)
_LONGEST_WAIT_S = 30.0
PATIENCE_S = 300.0  # without any answer, then the endpoint is lost


class EndpointRefused(RuntimeError):  # noqa: N818 - said of the endpoint
    """The endpoint refuses all requests: the run must stop."""


class EndpointLost(RuntimeError):  # noqa: N818 - said of the endpoint
    """The endpoint has not answered any request for a while: the run must stop, and can go on later."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served. The key is read from the environment of each process and stored nowhere."""

    url: str
    model: str  # as the server names it
    key_variable: str | None = None
    timeout_s: float = 600.0
    retries: int = 5  # of a request that fails although others are answered
    patience_s: float = PATIENCE_S

    def route(self, name: str) -> str:
        """The URL of a route; a server's root gets /v1."""
        base = self.url.rstrip("/")
        return f"{base}/{name}" if urlsplit(base).path else f"{base}/v1/{name}"

    def headers(self) -> dict[str, str]:
        """The headers of every request. Raises ConfigError if the variable of the key is not set."""
        if self.key_variable is None:
            return {}
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise ConfigError(f"api-key-env: the environment variable {self.key_variable} is not set")
        return {"Authorization": f"Bearer {key}"}


class _Answer(NamedTuple):
    status: int
    text: str
    retry_after: str | None


@dataclass
class Client:
    """Sends requests to an endpoint. Use it as an asynchronous context manager, in one event loop."""

    endpoint: Endpoint
    gate: Gate
    answered: float = field(
        default_factory=time.monotonic
    )  # when the endpoint last answered, or the client began
    served: str | None = None  # the model, as the first reply names it
    session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Client":
        self.session = aiohttp.ClientSession(
            headers=self.endpoint.headers(),
            connector=aiohttp.TCPConnector(limit=0),  # the gate bounds them
            timeout=aiohttp.ClientTimeout(total=self.endpoint.timeout_s, connect=30.0),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.session is not None:
            await self.session.close()

    async def send(
        self, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]
    ) -> Reply | Failure:
        """Send a request for a chat completion, several times if need be.

        Raises EndpointRefused or EndpointLost if the run must stop, and limits.Stopped if the budget is spent.
        """
        body = {"model": self.endpoint.model, "messages": list(messages), **options}
        failures = 0
        while True:
            began = time.monotonic()
            try:
                async with self.gate.slot():
                    began = time.monotonic()
                    answer = await self._post(self.endpoint.route("chat/completions"), body)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                why, wait = f"{type(error).__name__}: {error}".removesuffix(": "), _backoff(failures)
                failures += 1
            else:
                if answer.status not in _AGAIN and answer.status < 500:
                    return self._finished(answer, time.monotonic() - began)
                why = f"HTTP {answer.status}: {answer.text:.200}"
                wait = _retry_after(answer.retry_after) if answer.retry_after else _backoff(failures)
                if answer.status == 429 or answer.retry_after:
                    self.gate.pause(wait)
                failures += answer.status != 429  # a server that is busy is not at fault
            self._check_alive(why)
            if failures > self.endpoint.retries and self.answered >= began:
                return Failure("endpoint_error", f"{failures} times: {why}")
            await asyncio.sleep(wait)

    def _check_alive(self, why: str) -> None:
        silent = time.monotonic() - self.answered
        if silent > self.endpoint.patience_s:
            raise EndpointLost(
                f"endpoint {self.endpoint.url}: no request was answered for {silent:.0f} s; {why}"
            )

    async def _post(self, url: str, body: Mapping[str, Any]) -> _Answer:
        assert self.session is not None, "the client is not entered"
        async with self.session.post(url, json=body) as response:
            return _Answer(
                response.status, await response.text(errors="replace"), response.headers.get("Retry-After")
            )

    def _finished(self, answer: _Answer, seconds: float) -> Reply | Failure:
        """What an answer says that will not change if the request is sent again."""
        if why := _REFUSED.get(answer.status):
            raise EndpointRefused(
                f"endpoint {self.endpoint.url}: HTTP {answer.status}, {why}: {answer.text:.200}"
            )
        self.answered = time.monotonic()
        if answer.status != 200:
            overflow = any(words in answer.text.lower() for words in _OVERFLOW)
            reason = "context_overflow" if overflow else "endpoint_error"
            return Failure(reason, f"HTTP {answer.status}: {answer.text:.200}")
        try:
            reply = reply_of(json.loads(answer.text))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return Failure("endpoint_error", f"its answer is not a chat completion: {answer.text:.200}")
        self.gate.record(Usage(1, reply.prompt_tokens, reply.completion_tokens, seconds))
        self._check_served(reply.model)
        return reply

    def _check_served(self, model: str) -> None:
        self.served = self.served or model
        if model != self.served:
            raise EndpointRefused(
                f"endpoint {self.endpoint.url}: it served {self.served}, and now {model}: scores of two models must "
                f"not be mixed"
            )


def reply_of(body: Mapping[str, Any]) -> Reply:
    """The reply in the body of a chat completion. Raises ValueError, TypeError or LookupError if it is none."""
    choice = body["choices"][0]
    message, usage = choice["message"], body.get("usage") or {}
    logprobs = (choice.get("logprobs") or {}).get("content") or ()
    likely = tuple(
        (
            (str(place["token"]), float(place["logprob"])),
            *((str(top["token"]), float(top["logprob"])) for top in place.get("top_logprobs") or ()),
        )
        for place in logprobs
    )
    return Reply(
        text=_text(message.get("content")),
        finish_reason=str(choice.get("finish_reason") or ""),
        model=str(body.get("model") or ""),
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        reasoning=_text(message.get("reasoning_content") or message.get("reasoning")),
        refusal=_text(message.get("refusal")),
        likely=likely,
    )


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise TypeError("a text")
    return value or ""


def _backoff(failures: int) -> float:
    return random.uniform(0, min(_LONGEST_WAIT_S, 0.5 * 2**failures))


def _retry_after(value: str) -> float:
    """The seconds that a Retry-After header asks for: a number, or a date."""
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return 1.0


def check(endpoint: Endpoint) -> str:
    """Ask the endpoint which models it serves, before any work. Returns the name under which it serves this one.

    Raises ConfigError if it cannot be reached, refuses the key, or does not serve the model.
    """
    headers = endpoint.headers()
    try:
        answer = asyncio.run(_get(endpoint.route("models"), headers))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        why = str(error) or type(error).__name__
        raise ConfigError(f"endpoint {endpoint.url}: cannot be reached: {why}") from None
    if answer.status in (401, 403):
        given = (
            f"the key in {endpoint.key_variable}" if endpoint.key_variable else "no key (give --api-key-env)"
        )
        raise ConfigError(f"endpoint {endpoint.url}: HTTP {answer.status} with {given}: {answer.text:.200}")
    if answer.status != 200:
        raise ConfigError(
            f"endpoint {endpoint.url}: {endpoint.route('models')} answers HTTP {answer.status}: {answer.text:.200}; "
            f"give the URL that ends in /v1"
        )
    try:
        names = [str(model["id"]) for model in json.loads(answer.text)["data"]]
    except (ValueError, TypeError, KeyError):
        raise ConfigError(
            f"endpoint {endpoint.url}: its list of models is not one: {answer.text:.200}"
        ) from None
    if endpoint.model not in names:
        raise ConfigError(f"model: {endpoint.url} serves {', '.join(names) or 'none'}, not {endpoint.model}")
    return endpoint.model


async def _get(url: str, headers: Mapping[str, str]) -> _Answer:
    timeout = aiohttp.ClientTimeout(total=60.0, connect=10.0)
    async with (
        aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
        session.get(url) as response,
    ):
        return _Answer(response.status, await response.text(errors="replace"), None)
