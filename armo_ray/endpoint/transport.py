"""Requests to one server: which are repeated, and when; which end the run; and no key in any message."""

import asyncio
import logging
import os
import random
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import aiohttp

from armo_ray.endpoint.limits import Gate
from armo_ray.endpoint.reply import EndpointRefused, Failure
from armo_ray.errors import ConfigError

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
PATIENCE_S = 600.0  # with a server that is busy, or gone
_IN_A_ROW = 32  # requests that failed after all retries, with no success between them
_KEEP_ALIVE_S = 4.0  # uvicorn closes a connection after five
_RETRIED = {408, 409, 425, 429}
_LOST = {None, 502, 503}
_FORBIDDEN = {
    403,
    404,
    405,
}  # of one request, if others were answered: routers say so of what they do not serve
_FIRST = 8  # requests that the server may find wrong before it accepted one
_LOG_EVERY_S = 60.0
_UNMISTAKABLE = 16  # characters of a key that is no word of a reply
_REFUSED = {301, 302, 303, 307, 308, 401, 402, 403, 404, 405}
_OVERFLOW = re.compile(
    r"context_length_exceeded|exceed_context_size|exceeds? the (?:available )?context|context (?:length|window)"
    r"|maximum model length|request too large|max_model_len|(?:prompt|input) is too long|too many tokens",
    re.IGNORECASE,
)


class Answer(NamedTuple):
    """Of one attempt. The status is None if there was no answer; then `body` says why."""

    status: int | None
    body: bytes
    wait_s: float | None = None  # as the server asks

    def shown(self) -> str:
        text = " ".join(self.body[:800].decode("utf-8", "replace").split())[:200]
        return text if self.status is None else f"HTTP {self.status}: {text}"


class Transport:
    """A session with a server. Use as an async context manager."""

    def __init__(self, gate: Gate, key_variable: str | None, timeout_s: float, retries: int) -> None:
        self._gate, self._timeout_s, self._retries = gate, timeout_s, retries
        self._key = key_of(key_variable)
        self._in_a_row = 0
        self._answered = -1.0  # when a request last succeeded, by time.monotonic
        self._refused: str | None = None
        self._logged = -_LOG_EVERY_S

    async def __aenter__(self) -> "Transport":
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=min(30.0, self._timeout_s)),
            headers=headers,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(self, url: str, body: bytes, tokens: int) -> bytes | Failure:
        """The body of a reply. Raises EndpointRefused if no request can succeed.

        tokens: of the request and its reply, which the gate bounds.
        """
        tries, began, limited = 0, time.monotonic(), 0
        while True:
            sent = time.monotonic()
            answer = await self.attempt("POST", url, body, tries + limited, tokens)
            if (settled := self._settled(answer, url)) is not None:
                return settled
            patient = time.monotonic() - max(began, self._answered) < PATIENCE_S
            lost = (
                answer.status in _LOST and self._answered < sent
            )  # not by this request: all others wait too
            if (lost or answer.status == 429) and patient:
                limited += 1
            elif lost:
                raise self._refuse(
                    f"{url}: no request was answered for {PATIENCE_S:g} s, last: {answer.shown()}"
                )
            elif tries == self._retries:
                return self._given_up(answer, url, f"after {tries} retries: ")
            else:
                tries += 1
            await asyncio.sleep(_pause(answer, tries + limited - 1))

    async def attempt(
        self, method: str, url: str, body: bytes | None = None, earlier: int = 0, tokens: int = 0
    ) -> Answer:
        """One request. A server that asks for a pause pauses all requests of the gate."""
        async with self._gate.slot(tokens):
            if self._refused:  # while this one waited
                raise EndpointRefused(self._refused)
            try:
                async with self._session.request(method, url, data=body, allow_redirects=False) as response:
                    content, wait_s = await response.read(), retry_after(response.headers)
                    if not response.ok or len(self._key) >= _UNMISTAKABLE:
                        content = self._clean(content)
                    answer = Answer(response.status, content, wait_s)
            except aiohttp.ConnectionTimeoutError as error:
                return Answer(None, self._clean(f"{type(error).__name__}: {error}".encode()))
            except TimeoutError:  # of this request: others may be answered
                return Answer(408, f"no reply in {self._timeout_s:g} s".encode())
            except aiohttp.ClientSSLError as error:
                raise EndpointRefused(self._clean(f"{url}: {error}".encode()).decode()) from None
            except (aiohttp.ClientError, OSError) as error:
                text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                return Answer(None, self._clean(text.encode()))
            if answer.status == 429 or (answer.status == 503 and answer.wait_s):
                self._rest(url, answer, _pause(answer, earlier))
        return answer

    def _rest(self, url: str, answer: Answer, seconds: float) -> None:
        """Pause all requests of the gate, and say so now and then."""
        self._gate.pause(seconds)
        if time.monotonic() - self._logged > _LOG_EVERY_S:
            self._logged = time.monotonic()
            logger.warning("%s is busy, all requests wait for %.1f s: %s", url, seconds, answer.shown())

    def _settled(self, answer: Answer, url: str) -> bytes | Failure | None:
        """What the request came to; None if it is to be sent again."""
        status = answer.status
        if status is None:
            return None
        if 200 <= status < 300:
            self._in_a_row, self._answered = 0, time.monotonic()
            return answer.body
        if status in _FORBIDDEN and self._answered > 0:
            return self._given_up(answer, url)
        if status in _REFUSED or (status == 429 and b"insufficient_quota" in answer.body):
            raise self._refuse(f"{url}: {answer.shown()}")
        if _OVERFLOW.search(answer.body.decode("utf-8", "replace")):
            return Failure("context_overflow", answer.shown())
        return None if status in _RETRIED or status >= 500 else self._wrong(answer, url)

    def _wrong(self, answer: Answer, url: str) -> Failure:
        """A request that the server finds wrong. If it finds all wrong, the judge asks for what it does not know."""
        if self._answered < 0:
            self._in_a_row += 1
            if self._in_a_row >= _FIRST:
                raise self._refuse(
                    f"{url}: the first {_FIRST} requests were all refused, last: {answer.shown()}"
                )
        return Failure("endpoint_error", answer.shown())

    def _given_up(self, answer: Answer, url: str, after: str = "") -> Failure:
        self._in_a_row += 1
        if self._in_a_row >= _IN_A_ROW:
            raise self._refuse(f"{url}: {self._in_a_row} requests in a row failed, last: {answer.shown()}")
        return Failure("endpoint_error", after + answer.shown())

    def _refuse(self, message: str) -> EndpointRefused:
        self._refused = message
        return EndpointRefused(message)

    def shown(self, content: bytes) -> str:
        """A reply that is not what it should be, for a message."""
        return Answer(200, self._clean(content)).shown()

    def _clean(self, content: bytes) -> bytes:
        return content.replace(self._key.encode(), b"***") if self._key else content


def key_of(variable: str | None) -> str:
    """The key that an environment variable holds. Raises ConfigError if it holds none."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(f"the environment variable {variable} holds no key: set it to the endpoint's key")
    return key


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait, which it gives as such or as a date."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        now = parsedate_to_datetime(headers["Date"]).timestamp() if "Date" in headers else time.time()
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return None


def _pause(answer: Answer, earlier: int) -> float:
    """As the server asks, or else full jitter."""
    if answer.wait_s is not None:
        return min(answer.wait_s, PATIENCE_S)
    return random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(earlier, 10)))
