"""How many requests are in flight: the gate of one client, and the shares of all clients of a cluster."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

HEARTBEAT_S = 0.3
FORGET_S = 30.0  # since its last renewal: then a client is taken to be dead, and its connections closed


class Stopped(RuntimeError):  # noqa: N818 - it is no error of the request
    """The budget is spent: no further request is sent. Those in flight may still be answered."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the requests of a client took, from its start on."""

    requests: int = 0  # that were answered
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0  # in flight, summed over requests

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.seconds + other.seconds,
        )


class Allowance(NamedTuple):
    """What `Shares.renew` grants: slots from now on, seconds in which no request may start, and whether to stop."""

    allowed: int
    pause_s: float
    stop: bool


class Gate:
    """Bounds the requests of one client. All methods are called from one event loop.

    Args:
        limit: requests in flight.
        tokens_per_slot: their tokens may be so many for each request that is allowed. One request always may go.
    """

    def __init__(self, limit: int = 0, tokens_per_slot: float = math.inf) -> None:
        self.limit, self.tokens_per_slot = limit, tokens_per_slot
        self.in_flight = self.tokens_in_flight = 0
        self.used = Usage()
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()  # with the tokens of each
        self._paused_until = 0.0
        self._told_until = 0.0  # by the server, and not yet passed on
        self._stopped = False

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    @asynccontextmanager
    async def slot(self, tokens: int = 0) -> AsyncIterator[None]:
        """Holds one slot for a request of so many tokens.

        Waits while all are taken, or while the gate is paused. Raises Stopped once it is stopped.
        """
        if self._stopped:
            raise Stopped
        if self._waiting or not self._is_open(tokens):
            await self._turn(tokens)
        else:
            self._take(tokens)
        try:
            yield
        finally:
            self._release(tokens)

    def resize(self, limit: int) -> None:
        """Allow so many. Those in flight go on, also where there are more of them."""
        self.limit = limit
        self._wake()

    def pause(self, seconds: float) -> None:
        """Start no request for so long. Says what a server told this client; `keep` passes it on to all others."""
        loop = asyncio.get_running_loop()
        self._told_until = max(self._told_until, loop.time() + seconds)
        self._hold(seconds)

    def stop(self) -> None:
        """Start no request any more: those that wait, and new ones, raise Stopped."""
        self._stopped = True
        while self._waiting:
            if not (turn := self._waiting.popleft()[0]).done():
                turn.set_exception(Stopped())

    def reopen(self) -> None:
        """Allow requests again after a stop; the next renewal says so if the budget is spent."""
        self._stopped = False

    def record(self, used: Usage) -> None:
        """Add what a request took."""
        self.used += used

    def take_pause(self) -> float:
        """The seconds for which a server told this client to wait, once; 0 if it was passed on before."""
        told, self._told_until = self._told_until, 0.0
        return max(0.0, told - asyncio.get_running_loop().time())

    def apply(self, allowance: Allowance) -> None:
        """Obey what was granted for all clients."""
        if allowance.pause_s > 0:
            self._hold(allowance.pause_s)
        if allowance.stop:
            self.stop()
        self.resize(allowance.allowed)

    def _hold(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        if until > self._paused_until:
            self._paused_until = until
            loop.call_at(until, self._wake)

    def _is_open(self, tokens: int) -> bool:
        if self.in_flight >= self.limit or asyncio.get_running_loop().time() < self._paused_until:
            return False
        return not self.in_flight or self.tokens_in_flight + tokens <= self.limit * self.tokens_per_slot

    def _take(self, tokens: int) -> None:
        self.in_flight += 1
        self.tokens_in_flight += tokens

    def _release(self, tokens: int) -> None:
        self.in_flight -= 1
        self.tokens_in_flight -= tokens
        self._wake()

    async def _turn(self, tokens: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, tokens))
        try:
            await turn
        except asyncio.CancelledError:
            if (
                turn.done() and not turn.cancelled() and turn.exception() is None
            ):  # granted at the same moment
                self._release(tokens)
            self._wake()
            raise

    def _wake(self) -> None:
        while self._waiting and self._is_open(self._waiting[0][1]):
            turn, tokens = self._waiting.popleft()
            if not turn.done():
                self._take(tokens)
                turn.set_result(None)


@dataclass(slots=True)
class _Client:
    allowed: int = 0
    reserved: int = 0  # what it may have in flight until it renews again
    wants: int = 0
    seen: float = 0.0
    used: Usage = Usage()


class Shares:
    """Divides slots over clients, and sums what they used.

    The sum of what clients may have in flight never exceeds `limit`: a client whose share shrinks is counted with
    its former share until it renews again, and with all it still holds then.

    Args:
        limit: slots in all.
        max_cost: in the unit of the prices; the renewals after it is reached say `stop`.
        prompt_price: of a million prompt tokens.
        completion_price: of a million completion tokens.
        forget_s: a client that has not renewed for so many seconds is taken to be dead. What it used stays counted.
    """

    def __init__(
        self,
        limit: int,
        max_cost: float = math.inf,
        prompt_price: float = 0.0,
        completion_price: float = 0.0,
        forget_s: float = FORGET_S,
    ) -> None:
        self.limit = limit
        self.max_cost = max_cost
        self.prices = (prompt_price, completion_price)
        self.forget_s = forget_s
        self._clients: dict[str, _Client] = {}
        self._gone: dict[str, Usage] = {}
        self._paused_until = -math.inf

    @property
    def used(self) -> Usage:
        """What all clients used."""
        living = (client.used for client in self._clients.values())
        return sum((*living, *self._gone.values()), Usage())

    @property
    def cost(self) -> float:
        """Of the tokens that all clients used, in the unit of the prices."""
        used = self.used
        return (used.prompt_tokens * self.prices[0] + used.completion_tokens * self.prices[1]) / 1e6

    def renew(
        self, client: str, holds: int, wants: int, now: float, used: Usage, pause_s: float
    ) -> Allowance:
        """The share of a client.

        Args:
            client: its name, which no other attempt has.
            holds: its requests in flight.
            wants: how many it could have in flight; 0 when it ends.
            now: of one clock for all calls, in seconds.
            used: what it used since it began.
            pause_s: for how long a server told it to wait since its last renewal.
        """
        self._forget(now)
        self._gone.pop(client, None)  # it was only slow
        own = self._clients.setdefault(client, _Client())
        own.seen, own.wants, own.used = now, wants, used
        self._paused_until = max(self._paused_until, now + pause_s)
        free = self.limit - sum(c.reserved for name, c in self._clients.items() if name != client)
        before, own.allowed = own.allowed, max(0, min(free, self._fair(client)))
        own.reserved = max(own.allowed, before, holds)
        return Allowance(own.allowed, max(0.0, self._paused_until - now), self.cost >= self.max_cost)

    def _fair(self, client: str) -> int:
        """A share by which those that want least get all of it; what is left over goes to those that came first."""
        left = self.limit
        wanting = sorted((c.wants, order, name) for order, (name, c) in enumerate(self._clients.items()))
        for i, (wants, _, name) in enumerate(wanting):
            equal, over = divmod(left, len(wanting) - i)
            if wants > equal:  # and so do all that follow
                rest = sorted(wanting[i:], key=lambda item: item[1])
                return equal + ([name for _, _, name in rest].index(client) < over)
            if name == client:
                return wants
            left -= wants
        raise AssertionError("every client has wants")

    def _forget(self, now: float) -> None:
        for name in [n for n, c in self._clients.items() if now - c.seen > self.forget_s]:
            self._gone[name] = self._clients.pop(name).used


async def keep(
    gate: Gate,
    renew: Callable[[int, int, Usage, float], Awaitable[Allowance]],
    heartbeat_s: float = HEARTBEAT_S,
) -> None:
    """Renew the share of a gate until this task is cancelled; then give the share back.

    While shares change hands, they are renewed more often: slots that one client gives up wait for another to ask.

    Args:
        renew: `Shares.renew` with the client and the time filled in: takes holds, wants, used, and pause_s.
        heartbeat_s: between renewals of a share that stays as it is.
    """
    soon_s = pause_s = heartbeat_s / 6
    try:
        await asyncio.sleep(0)  # those that ask at the same moment are counted
        while True:
            before, wants = gate.limit, max(1, gate.in_flight + gate.waiting)
            gate.apply(await renew(gate.in_flight, wants, gate.used, gate.take_pause()))
            pause_s = soon_s if gate.limit != before or gate.limit == 0 else min(2 * pause_s, heartbeat_s)
            await asyncio.sleep(pause_s)
    finally:
        gate.resize(0)
        for _ in range(2):  # the first tells the end of the share, the second that this is known here
            await renew(gate.in_flight, 0, gate.used, gate.take_pause())
