"""Reward models behind endpoints: the numbers that each kind of server returns, and what is told if one is wrong."""

import asyncio
import json

import pytest

from armo_ray.endpoint.client import Client, Endpoint, check, probe
from armo_ray.endpoint.limits import Gate
from armo_ray.endpoint.reply import EndpointRefused, Failure, Reply
from armo_ray.endpoint.rewards import PROTOCOLS
from armo_ray.errors import ConfigError
from tests.support.fake_endpoint import control
from tests.support.fake_rewards import ATTRIBUTES, MODEL, reward_of

pytest_plugins = ("tests.support.endpoints",)
MESSAGES = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
OF_TEXT = [name for name, protocol in PROTOCOLS.items() if protocol.body is not None]
TEXT = "<s> What is 1+1 ? 2 </s>"
TOKENS = 7


def endpoint(url: str, protocol: str, activation: bool = False) -> Endpoint:
    """As a user writes it: some with /v1, where the API of a chat is."""
    return Endpoint(f"{url}/{protocol}/v1", MODEL, retries=0, protocol=protocol, activation=activation)


def send_text(at: Endpoint, text: str, num_tokens: int | None) -> Reply | Failure:
    async def run() -> Reply | Failure:
        async with Client(at, Gate(1)) as client:
            return await client.send_text(text, num_tokens)

    return asyncio.run(run())


def send(at: Endpoint) -> Reply | Failure:
    async def run() -> Reply | Failure:
        async with Client(at, Gate(1)) as client:
            return await client.send(MESSAGES, {})

    return asyncio.run(run())


@pytest.mark.parametrize("protocol", OF_TEXT)
def test_a_server_of_text_returns_its_reward_and_tokens(fake_chat: str, protocol: str) -> None:
    reply = send_text(endpoint(fake_chat, protocol), TEXT, TOKENS)
    tokens = 0 if protocol == "openrlhf" else TOKENS  # which does not tell them
    assert reply == Reply("", "stop", MODEL, tokens, 0, values={"reward": reward_of(TEXT)})


def test_a_server_of_messages_returns_its_rewards(fake_chat: str) -> None:
    text = json.dumps(MESSAGES)
    reply = send(endpoint(fake_chat, "nim-attributes"))
    assert isinstance(reply, Reply)
    assert reply.values == {name: reward_of(name + text) for name in ATTRIBUTES}
    reply = send(endpoint(fake_chat, "nim-reward"))
    assert isinstance(reply, Reply)
    assert (reply.values, reply.model, reply.prompt_tokens) == ({"reward": reward_of(text)}, MODEL, 78)


@pytest.mark.parametrize("protocol", ["vllm-pooling", "vllm-classify"])
def test_vllm_is_asked_to_add_no_second_bos(fake_chat: str, protocol: str) -> None:
    control(fake_chat, adds_bos=True)
    assert isinstance(send_text(endpoint(fake_chat, protocol), TEXT, TOKENS), Reply)


@pytest.mark.parametrize("protocol", ["sglang-classify", "lmdeploy-pooling"])
def test_a_second_bos_ends_the_run(fake_chat: str, protocol: str) -> None:
    control(fake_chat, adds_bos=True)
    with pytest.raises(
        EndpointRefused, match=r"counts 8 tokens where there are 7: double BOS.*add_bos_token"
    ):
        send_text(endpoint(fake_chat, protocol), TEXT, TOKENS)
    with pytest.raises(EndpointRefused, match="counts 8 tokens where there are 5: its tokenizer"):
        send_text(endpoint(fake_chat, protocol), TEXT, 5)
    assert isinstance(send_text(endpoint(fake_chat, protocol), TEXT, None), Reply)


@pytest.mark.parametrize("protocol", OF_TEXT)
def test_rewards_between_0_and_1_need_a_declared_activation(fake_chat: str, protocol: str) -> None:
    texts = [(TEXT, TOKENS), ("<s> 3 </s>", 3)]
    assert [reply.values["reward"] for reply in probe(endpoint(fake_chat, protocol), texts)] == [
        reward_of(text) for text, _ in texts
    ]
    control(fake_chat, activated=True)
    with pytest.raises(ConfigError, match=r"all values lie between 0 and 1 .*give --activation"):
        probe(endpoint(fake_chat, protocol), texts)
    assert len(probe(endpoint(fake_chat, protocol, activation=True), texts)) == 2


def test_a_probe_of_a_server_that_counts_other_tokens_or_fails_says_so(fake_chat: str) -> None:
    with pytest.raises(ConfigError, match="double BOS"):
        probe(endpoint(fake_chat, "sglang-classify"), [(TEXT, TOKENS - 1)])
    control(fake_chat, faults=[{"status": 500}])
    with pytest.raises(ConfigError, match="HTTP 500: a fault"):
        probe(endpoint(fake_chat, "sglang-classify"), [(TEXT, TOKENS)])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_answer_of_another_protocol_is_shown(fake_chat: str, protocol: str) -> None:
    at = endpoint(fake_chat, protocol)
    texts = [
        '{"data": [{"index": 0, "probs": "none"}], "choices": [{"message": {"content": "ok"}}]}',
        '{"data": [{"data": [[NaN]], "probs": [NaN]}], "rewards": [NaN], '
        '"choices": [{"message": {"content": "reward:nan"}}]}',
        '[{"embedding": [Infinity]}]',
        '{"data": [], "rewards": [], "choices": []}',
    ]
    for text in texts:
        control(fake_chat, faults=[{"status": 200, "text": text}])
        failure = send_text(at, TEXT, TOKENS) if protocol in OF_TEXT else send(at)
        assert isinstance(failure, Failure)
        assert failure.reason == "endpoint_error"
        assert f"not a reply of protocol {protocol}: HTTP 200: {text}" in failure.detail


def test_a_model_is_found_by_one_request_where_none_are_listed(fake_chat: str) -> None:
    for protocol in PROTOCOLS:
        assert check(endpoint(fake_chat, protocol)) == MODEL


def test_a_route_that_is_not_there_is_told_before_the_run(fake_chat: str) -> None:
    with pytest.raises(ConfigError, match=r"/pooling: HTTP 404"):
        check(Endpoint(f"{fake_chat}/vllm-classify", MODEL, protocol="vllm-pooling"))
    with pytest.raises(ConfigError, match="protocol 'tgi' is unknown; known: chat, nim-attributes, "):
        Endpoint(fake_chat, MODEL, protocol="tgi")
