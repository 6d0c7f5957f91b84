"""A real server's replies: llama.cpp with SmolLM2."""

import asyncio
import json
import math
from typing import Any

import pytest

from armo_ray.endpoint import transport
from armo_ray.endpoint.client import Client, Endpoint, check
from armo_ray.endpoint.limits import Gate
from armo_ray.endpoint.reply import Failure, Reply
from armo_ray.errors import ConfigError
from tests.support.llm_server import MODEL

pytest_plugins = ("tests.support.endpoints",)
QUESTION = "Say A or B."


def ask(url: str, *requests: dict[str, Any], text: str = QUESTION) -> list[Reply | Failure]:
    async def run() -> list[Reply | Failure]:
        async with Client(Endpoint(url, MODEL), Gate(2)) as client:
            sent = (client.send([{"role": "user", "content": text}], options) for options in requests)
            return list(await asyncio.gather(*sent))

    return asyncio.run(run())


def test_the_served_model_is_checked(real_chat: str) -> None:
    assert check(Endpoint(f"{real_chat}/v1", MODEL)) == MODEL
    with pytest.raises(ConfigError, match=f"does not serve 'other', but {MODEL}"):
        check(Endpoint(real_chat, "other"))


def test_a_reply_holds_the_likely_tokens_of_each_place(real_chat: str) -> None:
    options = {"max_tokens": 2, "temperature": 1, "seed": 5, "logprobs": True, "top_logprobs": 5}
    (reply,) = ask(real_chat, options)
    assert isinstance(reply, Reply)
    assert (reply.finish_reason, reply.model, reply.completion_tokens) == ("length", MODEL, 2)
    assert reply.prompt_tokens > 20
    assert len(reply.likely) == 2
    assert reply.text == "".join(place[0][0] for place in reply.likely)
    for place in reply.likely:
        assert len(place) in (5, 6)  # the generated one may not be among the likeliest
        assert 0 < sum(math.exp(p) for _, p in place) <= 1 + 1e-6
    assert Reply.from_dict(json.loads(json.dumps(reply.to_dict()))) == reply


def test_a_seed_gives_the_same_reply_again_and_another_seed_another(real_chat: str) -> None:
    sampled = {"max_tokens": 6, "temperature": 1.5}
    replies = ask(real_chat, *({**sampled, "seed": seed} for seed in (1, 1, 2)))
    first, again, other = (reply.text for reply in replies if isinstance(reply, Reply))
    assert first == again != other


def test_a_schema_forces_json(real_chat: str) -> None:
    schema = {
        "type": "object",
        "properties": {"winner": {"enum": ["A", "B"]}},
        "required": ["winner"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}}
    (reply,) = ask(real_chat, {"max_tokens": 24, "temperature": 0, "response_format": form})
    assert isinstance(reply, Reply)
    assert reply.finish_reason == "stop"
    assert json.loads(reply.text)["winner"] in ("A", "B")


def test_a_text_that_exceeds_the_context_is_told_apart(
    real_chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "FIRST_PAUSE_S", 100.0)  # it is not sent again
    (failure,) = ask(real_chat, {"max_tokens": 1}, text="a " * 3000)
    assert isinstance(failure, Failure)
    assert failure.reason == "context_overflow"
    assert "exceeds the available context size" in failure.detail
