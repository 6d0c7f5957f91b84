"""What is sent again, what ends the run, and what is told of a request that failed."""

import asyncio
import logging
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from armo_ray.endpoint import transport
from armo_ray.endpoint.client import Client, Endpoint, check
from armo_ray.endpoint.limits import Gate
from armo_ray.endpoint.reply import EndpointRefused, Failure, Reply
from armo_ray.errors import ConfigError
from tests.support.fake_endpoint import control, fake_endpoint, stop

pytest_plugins = ("tests.support.endpoints",)
KEY = "sk-very-secret"


@pytest.fixture
def url(fake_chat: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(transport, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    return fake_chat


def ask(url: str, count: int = 1, limit: int = 4, retries: int = 3) -> list[Reply | Failure]:
    async def run() -> list[Reply | Failure]:
        async with Client(Endpoint(url, "fake", "JUDGE_KEY", retries=retries), Gate(limit)) as client:
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
        ({"status": 200, "text": '{"choices": [], "error": "busy"}'}, "endpoint_error"),
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


def test_a_request_that_always_fails_is_given_up_while_others_succeed(url: str) -> None:
    control(url, broken="q 7")
    replies = ask(url, 20)
    failure = replies.pop(7)
    assert isinstance(failure, Failure)
    assert failure.reason == "endpoint_error"
    assert failure.detail == "after 3 retries: HTTP 500: a fault"
    assert all(isinstance(reply, Reply) for reply in replies)
    assert control(url)["requests"] == 19 + 4


def test_a_server_that_always_fails_ends_the_run(url: str) -> None:
    control(url, broken="q")
    with pytest.raises(EndpointRefused, match="32 requests in a row failed, last: HTTP 500: a fault"):
        ask(url, 40, retries=0)


def test_a_server_that_is_gone_for_a_while_is_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PATIENCE_S", 20.0)
    with ThreadPoolExecutor(1) as pool:
        with fake_endpoint("--delay-s", "0.1") as first:
            asked = pool.submit(ask, first, 4)
            while control(first)["requests"] < 4:
                time.sleep(0.01)
            stop(first)
        time.sleep(0.2)
        assert not asked.done()
        with fake_endpoint("--port", first.rsplit(":", 1)[1]) as again:
            assert again == first
            assert all(isinstance(reply, Reply) for reply in asked.result(30))


def test_a_server_that_stays_gone_ends_the_run(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PATIENCE_S", 0.3)
    with fake_endpoint() as gone:
        assert isinstance(ask(gone)[0], Reply)
    began = time.monotonic()
    with pytest.raises(EndpointRefused, match=r"no request was answered for 0.3 s, last: ClientConnector"):
        ask(gone, 8)
    assert 0.3 <= time.monotonic() - began < 5
    with pytest.raises(ConfigError, match="ClientConnector"):
        check(Endpoint(gone, "fake"))


def test_a_reply_tells_how_it_ended(url: str) -> None:
    replies = [{"finish_reason": "length"}, {"refusal": "I will not", "text": ""}, {"text": "<think>x"}]
    control(url, faults=[{"reply": reply} for reply in replies])
    assert ask(url, 3, limit=1) == [
        Reply("[[A]]", "length", "fake", 2, 1),
        Reply("", "stop", "fake", 2, 0, refusal="I will not"),
        Reply("<think>x", "stop", "fake", 2, 1),
    ]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_after_a_refusal_nothing_is_sent(url: str, status: int) -> None:
    control(url, delay_s=0.02, faults=[{"status": status}])
    with pytest.raises(EndpointRefused, match=f"HTTP {status}"):
        ask(url, 50)
    assert control(url)["requests"] <= 4


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


def test_a_wrong_key_or_url_is_told_before_any_work(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    control(url, key=KEY)
    assert check(Endpoint(url, "fake", "JUDGE_KEY")) == "fake"
    monkeypatch.setenv("JUDGE_KEY", "sk-another")
    for endpoint in (Endpoint(url, "fake"), Endpoint(url, "fake", "JUDGE_KEY")):
        with pytest.raises(ConfigError, match="/v1/models: HTTP 401: no such key"):
            check(endpoint)
    with pytest.raises(ConfigError, match="/elsewhere/chat/completions: HTTP 404"):
        check(Endpoint(f"{url}/elsewhere", "fake"))
    assert control(url)["requests"] == 0


def test_a_key_is_nowhere_but_in_its_header(
    url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    echoes = [{"status": status, "echo": True} for status in (200, 400, 500, 500, 500, 500, 429)]
    control(url, faults=[*echoes, {"drop": True}])
    told = [repr(reply) for reply in ask(url, 8, limit=1, retries=0)]
    assert sum("***" in text for text in told) == 6
    endpoint = Endpoint(url, "fake", "JUDGE_KEY")
    client = Client(endpoint, Gate(1))
    told += [repr(endpoint), repr(client), pickle.dumps(endpoint).decode("latin-1"), caplog.text]
    told += capfd.readouterr()
    assert [text for text in told if KEY in text] == []
    with pytest.raises(ConfigError, match="must hold no key") as error:
        Endpoint(f"http://user:{KEY}@host/v1", "fake")
    assert KEY not in str(error.value)


def test_one_request_that_times_out_or_is_forbidden_does_not_stop_the_others(url: str) -> None:
    slow, forbidden = {"reply": {"delay_s": 0.5}}, {"status": 403, "text": "moderated"}
    control(url, marked={"q 7'": slow, "q 8'": forbidden})

    async def run() -> list[Reply | Failure]:
        endpoint = Endpoint(url, "fake", timeout_s=0.3, retries=1)
        async with Client(endpoint, Gate(1)) as client:
            return [await client.send([{"role": "user", "content": f"q {i}"}], {}) for i in range(10)]

    replies = asyncio.run(run())
    failures = {i: reply for i, reply in enumerate(replies) if isinstance(reply, Failure)}
    assert failures == {
        7: Failure("endpoint_error", "after 1 retries: HTTP 408: no reply in 0.3 s"),
        8: Failure("endpoint_error", "HTTP 403: moderated"),
    }
    time.sleep(0.5)  # else the server would count the request that was given up in the next test


def test_a_server_that_refuses_the_first_requests_as_wrong_ends_the_run(url: str) -> None:
    control(url, faults=[{"status": 400, "text": "unknown field top_k"}] * 40)
    with pytest.raises(EndpointRefused, match=r"the first 8 requests were all refused.*unknown field top_k"):
        ask(url, 40)
    assert control(url)["requests"] <= 8 + 4


def test_half_a_surrogate_pair_in_a_reply_becomes_a_question_mark(url: str) -> None:
    control(url, text="good \ud83d")
    (reply,) = ask(url)
    assert isinstance(reply, Reply)
    assert reply.text == "good ?"
