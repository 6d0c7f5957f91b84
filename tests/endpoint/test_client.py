"""What is sent again, what ends the run, and what is told of a request that failed."""

import asyncio
import time
from typing import Any

import pytest

from armo_ray.endpoint import transport
from armo_ray.endpoint.client import Client, Endpoint, check
from armo_ray.endpoint.limits import Gate
from armo_ray.endpoint.reply import EndpointRefused, Failure, Reply
from armo_ray.errors import ConfigError
from tests.support.fake_endpoint import control

pytest_plugins = ("tests.support.endpoints",)
KEY = "sk-very-secret"


@pytest.fixture
def url(fake_chat: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(transport, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    return fake_chat


def ask(url: str, count: int = 1, limit: int = 4) -> list[Reply | Failure]:
    async def run() -> list[Reply | Failure]:
        async with Client(Endpoint(url, "fake", "JUDGE_KEY", retries=3), Gate(limit)) as client:
            sent = (client.send([{"role": "user", "content": f"q {i}"}], {}) for i in range(count))
            return list(await asyncio.gather(*sent))

    return asyncio.run(run())


def test_a_reply_holds_text_and_tokens_and_no_more_are_in_flight_than_allowed(url: str) -> None:
    control(url, delay_s=0.005)
    assert ask(url, 30) == [Reply("[[A]]", "stop", "fake", 2, 1)] * 30
    counted = control(url)
    assert (counted["requests"], counted["most_in_flight"], len(counted["by_key"])) == (30, 4, 30)


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 503}, {"drop": True}, {"status": 408}])
def test_what_may_succeed_later_is_sent_again(url: str, fault: dict[str, Any]) -> None:
    control(url, faults=[fault, fault])
    assert isinstance(ask(url)[0], Reply)
    assert control(url)["requests"] == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"status": 400, "text": "bad"}, "endpoint_error"),
        ({"status": 422, "text": "bad"}, "endpoint_error"),
        ({"status": 200, "text": '{"choices": [{"mess'}, "endpoint_error"),
        ({"status": 400, "text": "This model's maximum context length is 8 tokens"}, "context_overflow"),
        ({"status": 400, "text": '{"type": "exceed_context_size_error"}'}, "context_overflow"),
    ],
)
def test_what_would_fail_again_is_not_sent_again(url: str, fault: dict[str, Any], reason: str) -> None:
    control(url, faults=[fault])
    (failure,) = ask(url)
    assert isinstance(failure, Failure)
    assert failure.reason == reason
    assert fault["text"] in failure.detail
    assert control(url)["requests"] == 1


def test_when_one_is_told_to_wait_all_wait(url: str) -> None:
    control(url, faults=[{"status": 429, "headers": {"Retry-After": "0.4"}}])
    began = time.monotonic()
    assert all(isinstance(reply, Reply) for reply in ask(url, 5, limit=1))
    assert 0.4 <= time.monotonic() - began < 3
    assert control(url)["requests"] == 6


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_ends_the_run_and_shows_no_key(url: str, status: int) -> None:
    control(url, faults=[{"status": status, "echo": True}])
    with pytest.raises(EndpointRefused, match=f"HTTP {status}: a fault.*Bearer \\*\\*\\*") as refused:
        ask(url)
    assert KEY not in str(refused.value)


def test_a_served_model_that_changes_ends_the_run(url: str) -> None:
    assert check(Endpoint(url, "fake")) == "fake"
    control(url, model="other")

    async def run() -> None:
        async with Client(Endpoint(url, "fake"), Gate(1), served="fake") as client:
            await client.send([{"role": "user", "content": "q"}], {})

    with pytest.raises(EndpointRefused, match="was fake, and is now other"):
        asyncio.run(run())
    with pytest.raises(ConfigError, match="does not serve 'fake', but other"):
        check(Endpoint(url, "fake"))


def test_a_missing_key_is_told_before_any_request(url: str) -> None:
    with pytest.raises(ConfigError, match="NO_SUCH_KEY holds no key"):
        check(Endpoint(url, "fake", "NO_SUCH_KEY"))
    assert control(url)["requests"] == 0
