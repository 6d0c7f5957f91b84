"""Servers of reward models, each in the published form of its answers: routes of `fake_endpoint`, below the name of a
protocol. Tokens are words. `adds_bos` counts one more, unless a request can turn it off and does; `activated` squashes
the rewards."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
MODEL = "org/reward"


def reward_of(text: str) -> float:
    """From -8 to 8, in steps that float32 holds."""
    return hashlib.sha256(text.encode()).digest()[0] / 16 - 8


def answer(protocol: str, body: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """What a server of this protocol says. Raises KeyError if the request is not one."""
    return _ANSWERS[protocol](body, settings)


def _nim_attributes(body: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    text = json.dumps(body["messages"])
    places: list[dict[str, Any]] = [
        {"token": name, "logprob": reward_of(name + text), "bytes": None, "top_logprobs": []}
        for name in ATTRIBUTES
    ]
    message = {"role": "assistant", "content": ""}
    return _chat(message, {"content": places})


def _nim_reward(body: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    message = {"role": "assistant", "content": f"reward:{reward_of(json.dumps(body['messages']))}"}
    return _chat(message, None)


def _chat(message: Mapping[str, Any], logprobs: Any) -> Any:
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "length"}
    usage = {"prompt_tokens": 78, "completion_tokens": 1, "total_tokens": 79}
    return {"id": "c", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}


def _vllm_pooling(body: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    (text,) = body["input"]
    rewards = [[0.0] for _ in text.split()[1:]] + [[_value(text, settings)]]
    return _list({"index": 0, "object": "pooling", "data": rewards}, _tokens(text, body, settings))


def _vllm_classify(body: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    (text,) = body["input"]
    data = {"index": 0, "label": "LABEL_0", "probs": [_value(text, settings)], "num_classes": 1}
    return _list(data, _tokens(text, body, settings))


def _sglang_classify(body: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    (text,) = body["text"]
    meta = {"id": "1", "finish_reason": {"type": "length", "length": 0}}
    return [
        {
            "embedding": [_value(text, settings)],
            "meta_info": meta | {"prompt_tokens": _tokens(text, {}, settings)},
        }
    ]


def _lmdeploy_pooling(body: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    (text,) = body["input"]
    data = {"index": 0, "object": "pooling", "data": _value(text, settings)}
    return _list(data, _tokens(text, {}, settings))


def _openrlhf(body: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    return {"rewards": [_value(text, settings) for text in body["query"]]}


def _value(text: str, settings: Mapping[str, Any]) -> float:
    value = reward_of(text)
    return 1 / (1 + math.exp(-value)) if settings["activated"] else value


def _tokens(text: str, body: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
    adds = settings["adds_bos"] and body.get("add_special_tokens", True)
    return len(text.split()) + bool(adds)


def _list(data: Mapping[str, Any], tokens: int) -> Any:
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    return {"id": "x", "object": "list", "created": 0, "model": MODEL, "data": [data], "usage": usage}


_ANSWERS = {
    "nim-attributes": _nim_attributes,
    "nim-reward": _nim_reward,
    "vllm-pooling": _vllm_pooling,
    "vllm-classify": _vllm_classify,
    "sglang-classify": _sglang_classify,
    "lmdeploy-pooling": _lmdeploy_pooling,
    "openrlhf": _openrlhf,
}
