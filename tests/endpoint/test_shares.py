"""Clients that share the requests in flight: whatever they do, the server never sees more than the bound."""

import asyncio
import random
import threading
import time
from dataclasses import dataclass

import pytest

from armo_ray.endpoint import transport
from armo_ray.endpoint.client import Client, Endpoint
from armo_ray.endpoint.limits import Allowance, Gate, Shares, Usage, keep
from armo_ray.endpoint.reply import Reply
from tests.support.fake_endpoint import control

pytest_plugins = ("tests.support.endpoints",)
HEARTBEAT_S = 0.03


class SharedClients:
    """Clients of one Shares, each in an event loop and a thread of its own."""

    def __init__(self, url: str, limit: int) -> None:
        self.url = url
        self.shares, self.lock = Shares(limit), threading.Lock()
        self.used: dict[str, Usage] = {}

    def ask(self, name: str, count: int, after_s: float = 0.0) -> None:
        asyncio.run(self._ask(name, count, after_s))

    def run(self, *requests: tuple[str, int, float]) -> None:
        threads = [threading.Thread(target=self.ask, args=request) for request in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)

    async def _ask(self, name: str, count: int, after_s: float) -> None:
        gate = Gate()

        async def renew(holds: int, wants: int, used: Usage, pause_s: float) -> Allowance:
            with self.lock:
                return self.shares.renew(name, holds, wants, time.monotonic(), used, pause_s)

        await asyncio.sleep(after_s)
        async with Client(Endpoint(self.url, "fake"), gate) as client:
            keeping = asyncio.create_task(keep(gate, renew, HEARTBEAT_S))
            sent = (client.send([{"role": "user", "content": f"{name} {i}"}], {}) for i in range(count))
            assert all(isinstance(reply, Reply) for reply in await asyncio.gather(*sent))
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        self.used[name] = gate.used


def test_the_server_never_sees_more_requests_than_the_bound(
    fake_chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "FIRST_PAUSE_S", 0.01)
    faults = [{"status": 500}, {"drop": True}, {"status": 429, "headers": {"Retry-After": "0.05"}}] * 8
    control(fake_chat, delay_s=0.01, faults=faults)
    clients = SharedClients(fake_chat, 6)
    clients.run(("a", 150, 0.0), ("b", 60, 0.15), ("c", 60, 0.3), ("d", 5, 0.35))
    counted = control(fake_chat)
    assert 4 <= counted["most_in_flight"] <= 6
    assert (counted["answered"], counted["requests"]) == (275, 275 + len(faults))
    used = clients.shares.used
    assert (used.requests, used.prompt_tokens) == (275, counted["prompt_tokens"])
    assert used.completion_tokens == counted["completion_tokens"]


def test_when_a_server_tells_one_client_to_wait_all_wait(fake_chat: str) -> None:
    wait_s = 0.5
    fault = {"status": 429, "headers": {"Retry-After": str(wait_s)}}
    control(fake_chat, delay_s=0.01, faults=[fault])
    SharedClients(fake_chat, 4).run(("a", 60, 0.0), ("b", 60, 0.0))
    counted = control(fake_chat)
    first, *later = counted["arrived"]  # the first is told to wait
    told = first + 0.01 + 4 * HEARTBEAT_S  # by then all know
    assert [at for at in later if told < at < first + wait_s] == []
    assert len([at for at in later if at >= first + wait_s]) > 60
    assert counted["requests"] == 121


@dataclass(eq=False)
class Simulated:
    """A client as the shares do not see it."""

    allowed: int = 0
    in_flight: int = 0
    waiting: int = 0
    granted: int | None = None  # on its way back
    used: int = 0
    told: int = 0  # of what it used
    alive: bool = True


class Simulation:
    """Clients that start, finish, renew and die in any order; what is granted may take long to arrive."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.limit, self.now = self.draw.randint(1, 12), 0.0
        self.shares = Shares(self.limit, forget_s=30.0)
        self.clients: list[Simulated] = []

    def step(self) -> None:
        if not self.clients or (len(self.clients) < 5 and self.draw.random() < 0.05):
            self.clients.append(Simulated(waiting=self.draw.randint(1, 20)))
        client = self.draw.choice(self.clients)
        if client.alive:
            self.draw.choice([self.starts, self.finishes, self.renews, self.learns])(client)
        if self.draw.random() < 0.01:
            client.alive, client.in_flight = (
                False,
                0,
            )  # its connections close, but the shares know nothing of it

    def starts(self, client: Simulated) -> None:
        started = max(0, min(client.waiting, client.allowed - client.in_flight))
        client.in_flight += started
        client.waiting -= started

    def finishes(self, client: Simulated) -> None:
        finished = self.draw.randint(0, client.in_flight)
        client.in_flight -= finished
        client.used += finished
        client.waiting += self.draw.choice([0, 0, 3, 9])

    def renews(self, client: Simulated) -> None:
        self.now += self.draw.uniform(0, 0.2)
        if client.granted is None:
            client.granted = self.renew(client)

    def learns(self, client: Simulated) -> None:
        if client.granted is not None:
            client.allowed, client.granted = client.granted, None

    def renew(self, client: Simulated) -> int:
        client.told = client.used
        wants = max(1, client.in_flight + client.waiting)
        name = str(self.clients.index(client))
        used = Usage(client.used)
        return self.shares.renew(name, client.in_flight, wants, self.now, used, 0.0).allowed

    def settle(self) -> list[int]:
        """What those that live may have in flight in the end, if all want more than there is."""
        living = [client for client in self.clients if client.alive]
        for _ in range(4):
            self.now += 29.0
            for client in living:
                client.waiting = 20
                client.allowed = self.renew(client)
                client.in_flight = min(client.in_flight, client.allowed)
        return [client.allowed for client in living]


def simulate(seed: int) -> None:
    clients = Simulation(seed)
    for _ in range(150):
        clients.step()
        assert sum(client.in_flight for client in clients.clients) <= clients.limit, seed
    allowed = clients.settle()
    if allowed:  # the slots of the dead too
        assert sum(allowed) == clients.limit, seed
        assert max(allowed) - min(allowed) <= 1, seed
    assert clients.shares.used.requests == sum(client.told for client in clients.clients), seed


def test_in_any_order_of_events_the_bound_holds_and_no_slot_is_lost() -> None:
    for seed in range(150):
        simulate(seed)


@pytest.mark.nightly
def test_in_many_orders_of_events_the_bound_holds_and_no_slot_is_lost() -> None:
    for seed in range(150, 20_000):
        simulate(seed)
