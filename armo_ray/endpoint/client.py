"""A model behind an OpenAI-compatible endpoint."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from armo_ray.endpoint.limits import Gate, Usage
from armo_ray.endpoint.reply import EndpointRefused, Failure, Likely, Reply
from armo_ray.endpoint.transport import Answer, Transport
from armo_ray.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go, and how.

    Args:
        url: of the server's root or its API, such as http://host:8000/v1.
        model: as the server names it.
        key_variable: name of the environment variable that holds the key.
        timeout_s: of one attempt.
        retries: attempts after the first, for what may succeed later.
        protocol: "chat".
    """

    url: str
    model: str
    key_variable: str | None = None
    timeout_s: float = 600.0
    retries: int = 6
    protocol: str = "chat"

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("the endpoint's URL is not of the form http://host:port/v1")
        if parts.username or parts.password or parts.query:
            raise ConfigError("the endpoint's URL must hold no key: name its environment variable instead")
        if self.protocol != "chat":
            raise ConfigError(f"protocol {self.protocol!r} is unknown; known: chat")

    def at(self, route: str) -> str:
        """The URL of a route of the API."""
        base = self.url.rstrip("/")
        return f"{base}/{route}" if urlsplit(base).path else f"{base}/v1/{route}"


class Client:
    """Sends requests within the limit of a gate. Use as an async context manager.

    Args:
        served: the model that replies must name; without it, that of the first reply.
    """

    def __init__(self, endpoint: Endpoint, gate: Gate, served: str | None = None) -> None:
        self.endpoint, self.gate, self.served = endpoint, gate, served
        self._transport = Transport(gate, endpoint.key_variable, endpoint.timeout_s, endpoint.retries)

    async def __aenter__(self) -> "Client":
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.__aexit__()

    async def send(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> Reply | Failure:
        """The reply to messages. Raises EndpointRefused where the run must stop, and Stopped as the gate does."""
        request = {"model": self.endpoint.model, "messages": list(messages), **options}
        body = json.dumps(request, default=dict).encode()
        began = time.monotonic()
        content = await self._transport.post(self.endpoint.at("chat/completions"), body)
        if isinstance(content, Failure):
            return content
        try:
            reply = read_chat(json.loads(content))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return Failure("endpoint_error", f"not a chat completion: {Answer(200, content).shown()}")
        self.gate.record(Usage(1, reply.prompt_tokens, reply.completion_tokens, time.monotonic() - began))
        self._check_model(reply.model)
        return reply

    def _check_model(self, model: str) -> None:
        self.served = self.served or model
        if model != self.served:
            raise EndpointRefused(
                f"{self.endpoint.url}: the served model was {self.served}, and is now {model}"
            )


def read_chat(content: Mapping[str, Any]) -> Reply:
    """The first choice of a chat completion. Raises KeyError and the like if it is none."""
    choice = content["choices"][0]
    message, usage = choice["message"], content.get("usage") or {}
    return Reply(
        text=_text(message.get("content")),
        finish_reason=str(choice.get("finish_reason") or ""),
        model=str(content.get("model") or ""),
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        reasoning=str(message.get("reasoning_content") or message.get("reasoning") or ""),
        refusal=str(message.get("refusal") or ""),
        likely=tuple(_likely(place) for place in (choice.get("logprobs") or {}).get("content") or ()),
    )


def check(endpoint: Endpoint) -> str:
    """The id of the served model. Raises ConfigError if the endpoint, its key or its model is wrong."""
    try:
        return asyncio.run(_check(endpoint))
    except EndpointRefused as error:
        raise ConfigError(str(error)) from None


async def _check(endpoint: Endpoint) -> str:
    async with Transport(Gate(1), endpoint.key_variable, min(30.0, endpoint.timeout_s), 0) as transport:
        answer = await transport.attempt("GET", endpoint.at("models"))
    if answer.status in (404, 405, 501):
        return await _probe(endpoint)
    try:
        if answer.status != 200:
            raise ValueError
        ids = [str(model["id"]) for model in json.loads(answer.body)["data"]]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{endpoint.at('models')}: {answer.shown()}") from None
    for served in ids:
        if served == endpoint.model or served.endswith(f"/{endpoint.model}"):
            return served
    raise ConfigError(f"{endpoint.url} does not serve {endpoint.model!r}, but {', '.join(sorted(ids)[:20])}")


async def _probe(endpoint: Endpoint) -> str:
    """The model by a request of one token, for a server that does not list its models."""
    async with Client(endpoint, Gate(1)) as client:
        reply = await client.send([{"role": "user", "content": "Hello"}], {"max_tokens": 1})
    if isinstance(reply, Failure):
        raise ConfigError(f"{endpoint.url}: {reply.detail}")
    return reply.model


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content)
    if content is None or isinstance(content, str):
        return content or ""
    raise TypeError


def _likely(place: Mapping[str, Any]) -> Likely:
    found = {str(place["token"]): float(place["logprob"])}
    for other in place.get("top_logprobs") or ():
        found.setdefault(str(other["token"]), float(other["logprob"]))
    return tuple(found.items())
