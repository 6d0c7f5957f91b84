"""Requests in flight stay below the bound, however many clients share it."""

import asyncio
import random

import pytest

from armo_ray.endpoint.limits import Allowance, Gate, Shares, Stopped, Usage, keep


def test_several_clients_never_hold_more_than_the_limit_and_all_get_a_share() -> None:
    limit, shares = 7, Shares(7)
    in_flight, most, done = 0, 0, [0, 0, 0, 0]

    async def request(gate: Gate, client: int, draw: random.Random) -> None:
        nonlocal in_flight, most
        async with gate.slot():
            in_flight += 1
            most = max(most, in_flight)
            await asyncio.sleep(draw.uniform(0, 0.004))
            in_flight -= 1
        done[client] += 1

    async def client(number: int) -> None:
        draw = random.Random(number)
        gate = Gate()

        async def renew(holds: int, wants: int, used: Usage, pause_s: float) -> Allowance:
            granted = shares.renew(
                str(number), holds, wants, asyncio.get_running_loop().time(), used, pause_s
            )
            await asyncio.sleep(draw.uniform(0, 0.01))  # the gate still acts on its former share
            return granted

        await asyncio.sleep(number * 0.02)
        keeping = asyncio.create_task(keep(gate, renew, heartbeat_s=0.01))
        await asyncio.gather(*(request(gate, number, draw) for _ in range(60)))
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    async def run() -> None:
        await asyncio.gather(*map(client, range(4)))

    asyncio.run(run())
    assert done == [60, 60, 60, 60]
    assert 3 <= most <= limit


def test_shares_are_fair_and_a_small_wish_is_met() -> None:
    shares = Shares(10)
    wishes = {"a": 100, "b": 2, "c": 100}
    for now in range(4):
        granted = {
            name: shares.renew(name, 0, wants, now, Usage(), 0).allowed for name, wants in wishes.items()
        }
        assert sum(granted.values()) <= 10
    assert granted == {"a": 4, "b": 2, "c": 4}


def test_a_client_that_shrinks_is_counted_with_what_it_holds() -> None:
    shares = Shares(10)
    assert shares.renew("a", 0, 50, 0, Usage(), 0).allowed == 10
    assert shares.renew("b", 0, 50, 0, Usage(), 0).allowed == 0
    assert shares.renew("a", 10, 50, 1, Usage(), 0).allowed == 5
    assert shares.renew("b", 0, 50, 1, Usage(), 0).allowed == 0
    assert shares.renew("a", 8, 50, 2, Usage(), 0).allowed == 5
    assert shares.renew("b", 0, 50, 2, Usage(), 0).allowed == 2
    assert shares.renew("b", 0, 50, 99, Usage(), 0).allowed == 10  # a has not been heard of since


def test_one_that_was_told_to_wait_makes_all_wait_and_the_budget_stops_all() -> None:
    shares = Shares(4, max_cost=3.0, prompt_price=1.0, completion_price=2.0)
    assert shares.renew("a", 0, 4, 10.0, Usage(1, 1_000_000, 0), 5.0).pause_s == 5.0
    other = shares.renew("b", 0, 4, 12.0, Usage(1, 0, 900_000), 0.0)
    assert (other.pause_s, other.stop) == (3.0, False)
    assert shares.renew("b", 0, 4, 16.0, Usage(2, 0, 1_000_000), 0.0) == (0, 0.0, True)
    assert shares.used == Usage(3, 1_000_000, 1_000_000)


def test_requests_that_wait_at_a_stopped_gate_are_not_sent() -> None:
    async def run() -> None:
        gate = Gate(1)
        async with gate.slot():
            waiting = asyncio.ensure_future(gate.slot().__aenter__())
            await asyncio.sleep(0)
            gate.stop()
            with pytest.raises(Stopped):
                await waiting
        assert gate.in_flight == 0

    asyncio.run(run())


def test_tokens_in_flight_are_bounded_too_and_a_request_that_is_larger_goes_alone() -> None:
    gate, most, done = Gate(8, tokens_per_slot=10), dict[int, int](), list[int]()

    async def request(tokens: int) -> None:
        async with gate.slot(tokens):
            most[tokens] = max(most.get(tokens, 0), gate.in_flight)
            assert gate.tokens_in_flight <= 80 or gate.in_flight == 1
            await asyncio.sleep(0.001)
        done.append(tokens)

    async def run() -> None:
        await asyncio.gather(*map(request, [30] * 9 + [200] * 2 + [1] * 20))

    asyncio.run(run())
    assert sorted(done) == [1] * 20 + [30] * 9 + [200] * 2
    assert most == {30: 2, 200: 1, 1: 8}
    assert gate.in_flight == gate.tokens_in_flight == 0
