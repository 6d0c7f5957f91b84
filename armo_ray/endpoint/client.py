"""A model behind an OpenAI-compatible endpoint."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from armo_ray.endpoint.limits import Gate, Usage
from armo_ray.endpoint.reply import EndpointRefused, Failure, Likely, Reply
from armo_ray.endpoint.rewards import PROTOCOLS, reply_of
from armo_ray.endpoint.transport import Transport
from armo_ray.errors import ConfigError

KNOWN = ("chat", *PROTOCOLS)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go, and how.

    Args:
        url: of the server's root or its API, such as http://host:8000/v1.
        model: as the server names it.
        key_variable: name of the environment variable that holds the key.
        timeout_s: of one attempt.
        retries: attempts after the first, for what may succeed later.
        protocol: "chat", or that of a server of reward models (see `rewards.PROTOCOLS`).
        activation: the values of a reward model are declared to have passed one, such as a sigmoid.
    """

    url: str
    model: str
    key_variable: str | None = None
    timeout_s: float = 600.0
    retries: int = 6
    protocol: str = "chat"
    activation: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("the endpoint's URL is not of the form http://host:port/v1")
        if parts.username or parts.password or parts.query:
            raise ConfigError("the endpoint's URL must hold no key: name its environment variable instead")
        if self.protocol not in KNOWN:
            raise ConfigError(f"protocol {self.protocol!r} is unknown; known: {', '.join(KNOWN)}")

    def at(self, route: str) -> str:
        """The URL of a route of the API."""
        base = self.url.rstrip("/")
        return f"{base}/{route}" if urlsplit(base).path else f"{base}/v1/{route}"

    def beside(self, route: str) -> str:
        """The URL of a route of the server, which also has the API."""
        base = self.url.rstrip("/").removesuffix("/v1")
        return f"{base}/{route}"


_EXCHANGE = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"})


class Client:
    """Sends requests within the limit of a gate. Use as an async context manager.

    Args:
        served: the model that replies must name; without it, that of the first reply.
    """

    def __init__(self, endpoint: Endpoint, gate: Gate, served: str | None = None) -> None:
        self.endpoint, self.gate, self.served = endpoint, gate, served
        self._counts_alike = False  # whether the server counted the tokens of a text as they are
        self._rewards = PROTOCOLS.get(endpoint.protocol)
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
        if self._rewards is None:
            return await self._exchange(self.endpoint.at("chat/completions"), request, read_chat)
        if self._rewards.body is not None:
            raise TypeError(f"protocol {self.endpoint.protocol} takes text, not messages")
        return await self._exchange(self.endpoint.at("chat/completions"), request, self._read_rewards)

    async def send_text(self, text: str, num_tokens: int | None) -> Reply | Failure:
        """The reply of a reward model that takes text; else as `send`.

        Args:
            text: with all special tokens that the model reads, a BOS too.
            num_tokens: of the text. EndpointRefused is raised if the server counts others; None to let it be.
        """
        if self._rewards is None or self._rewards.body is None:
            raise TypeError(f"protocol {self.endpoint.protocol} takes messages, not text")
        url = self.endpoint.beside(self._rewards.route)
        reply = await self._exchange(url, self._rewards.body(self.endpoint.model, text), self._read_rewards)
        if isinstance(reply, Reply) and num_tokens is not None and reply.prompt_tokens:
            return self._compared(url, reply, num_tokens)
        return reply

    async def _exchange(
        self, url: str, request: Mapping[str, Any], read: Callable[[Any], Reply]
    ) -> Reply | Failure:
        body = json.dumps(request, default=dict).encode()
        began = time.monotonic()
        content = await self._transport.post(url, body, tokens_of(request, body))
        if isinstance(content, Failure):
            return content
        try:
            reply = read(json.loads(content))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            shown = self._transport.shown(content)
            return Failure("endpoint_error", f"not a reply of protocol {self.endpoint.protocol}: {shown}")
        self.gate.record(Usage(1, reply.prompt_tokens, reply.completion_tokens, time.monotonic() - began))
        self._check_model(reply.model)
        return reply

    def _read_rewards(self, content: Any) -> Reply:
        assert self._rewards is not None
        return reply_of(self._rewards, content, self.served or self.endpoint.model)

    def _compared(self, url: str, reply: Reply, num_tokens: int) -> Reply | Failure:
        """The reply, if the server read as many tokens as the text has."""
        told = reply.prompt_tokens
        if told == num_tokens:
            self._counts_alike = True
            return reply
        if told < num_tokens and self._counts_alike:
            return Failure("context_overflow", f"the server read {told} of the {num_tokens} tokens")
        why = "its tokenizer or template is another, or it cuts texts off: serve the model with its own tokenizer"
        if told == num_tokens + 1:
            why = (
                "double BOS: it adds a BOS to a text that begins with one, which changes scores silently; "
                "serve the model so that it adds none, such as by add_bos_token = false in the tokenizer_config.json "
                "that the server reads"
            )
        raise EndpointRefused(f"{url}: the server counts {told} tokens where there are {num_tokens}: {why}")

    def _check_model(self, model: str) -> None:
        self.served = self.served or model
        if model != self.served:
            raise EndpointRefused(
                f"{self.endpoint.url}: the served model was {self.served}, and is now {model}"
            )


def tokens_of(request: Mapping[str, Any], body: bytes) -> int:
    """An estimate of the tokens of a request and the longest reply to it, at four bytes a token."""
    longest = request.get("max_completion_tokens") or request.get("max_tokens") or 0
    return len(body) // 4 + int(longest) * int(request.get("n") or 1)


def read_chat(content: Mapping[str, Any]) -> Reply:
    """The first choice of a chat completion. Raises KeyError and the like if it is none."""
    choice = content["choices"][0]
    message, usage = choice["message"], content.get("usage") or {}
    return Reply(
        text=_text(message.get("content")),
        finish_reason=_text(choice.get("finish_reason")),
        model=str(content.get("model") or ""),
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        reasoning=_text(message.get("reasoning_content") or message.get("reasoning")),
        refusal=_text(message.get("refusal")),
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
    """The model by one short request, for a server that does not list its models."""
    protocol = PROTOCOLS.get(endpoint.protocol)
    async with Client(endpoint, Gate(1)) as client:
        if protocol is None:
            reply = await client.send([{"role": "user", "content": "Hello"}], {"max_tokens": 1})
        elif protocol.body is None:
            reply = await client.send(_EXCHANGE, {})
        else:
            reply = await client.send_text("Hello", None)
    if isinstance(reply, Failure):
        raise ConfigError(f"{endpoint.url}: {reply.detail}")
    return reply.model


def probe(endpoint: Endpoint, texts: Sequence[tuple[str, int]]) -> list[Reply]:
    """What a reward model says of a few texts of a run, before the run.

    Args:
        texts: at least two, each with the number of its tokens, which are compared with the server's.

    Raises:
        ConfigError: if the endpoint fails, counts other tokens, or returns values that all lie between 0 and 1
            although no activation is declared.
    """
    try:
        replies = asyncio.run(_replies(endpoint, texts))
    except EndpointRefused as error:
        raise ConfigError(str(error)) from None
    if not endpoint.activation:
        _check_activation(endpoint, replies)
    return replies


async def _replies(endpoint: Endpoint, texts: Sequence[tuple[str, int]]) -> list[Reply]:
    replies = []
    async with Client(endpoint, Gate(1)) as client:
        for text, num_tokens in texts:
            reply = await client.send_text(text, num_tokens)
            if isinstance(reply, Failure):
                raise EndpointRefused(f"{endpoint.url}: {reply.detail}")
            replies.append(reply)
    return replies


def _check_activation(endpoint: Endpoint, replies: Sequence[Reply]) -> None:
    values = [value for reply in replies for value in reply.values.values()]
    if values and all(0 < value < 1 for value in values):
        raise ConfigError(
            f"{endpoint.url}: all values lie between 0 and 1 ({', '.join(f'{v:g}' for v in values)}): the server seems "
            "to apply a sigmoid or softmax, after which most rewards are equal. Turn it off (for vLLM: "
            "--pooler-config '{\"use_activation\": false}'), or give --activation if the model is meant so"
        )


def _text(content: Any) -> str:
    """The text of a message; half a surrogate pair, which a server may cut off, becomes a question mark."""
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content)
    if content is not None and not isinstance(content, str):
        raise TypeError
    return (content or "").encode("utf-8", "replace").decode()


def _likely(place: Mapping[str, Any]) -> Likely:
    found = {str(place["token"]): float(place["logprob"])}
    for other in place.get("top_logprobs") or ():
        found.setdefault(str(other["token"]), float(other["logprob"]))
    return tuple(found.items())
