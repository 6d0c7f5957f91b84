"""What the servers of reward models are sent, and where their answers hold the numbers."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from armo_ray.endpoint.reply import Reply

# of Nemotron-4-340B-Reward's attributes in its score, by HelpSteer2
_HELPSTEER2 = {
    "helpfulness": 0.3,
    "correctness": 0.74,
    "coherence": 0.46,
    "complexity": 0.47,
    "verbosity": -0.33,
}
_REWARD = re.compile(r"\s*reward:\s*(\S+)\s*")


class Found(NamedTuple):
    """What an answer holds. Model and tokens are None if the server does not tell them."""

    values: Mapping[str, float]
    model: str | None = None
    num_tokens: int | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class RewardProtocol:
    """How one kind of server is asked.

    Args:
        route: below the server's root.
        read: takes the JSON of an answer. Raises KeyError, ValueError and the like if it is not of this protocol.
        body: the request for a model and a text; None if the server is sent messages, as for a chat.
        weights: of the values in the score.
    """

    route: str
    read: Callable[[Any], Found]
    body: Callable[[str, str], Mapping[str, Any]] | None = None
    weights: Mapping[str, float] | None = None


def reply_of(protocol: RewardProtocol, content: Any, model: str) -> Reply:
    """An answer as a reply whose `values` are all finite.

    Args:
        content: its JSON. ValueError, KeyError and the like are raised if it is not of this protocol.
        model: of the reply, if the server does not tell it.
    """
    found = protocol.read(content)
    if not found.values or not all(math.isfinite(value) for value in found.values.values()):
        raise ValueError(f"not finite: {found.values}")
    return Reply(found.text, "stop", found.model or model, found.num_tokens or 0, 0, values=found.values)


def _attributes(content: Any) -> Found:
    """As NIM's nemotron-4-340b-reward: the attributes stand where a chat has tokens and log-probabilities."""
    places = content["choices"][0]["logprobs"]["content"]
    values = {place["token"]: float(place["logprob"]) for place in places}
    if set(values) != set(_HELPSTEER2):
        raise ValueError(f"attributes: {', '.join(values)}")
    return Found({name: values[name] for name in _HELPSTEER2}, *_told(content))


def _written(content: Any) -> Found:
    """As NIM's llama-3.1-nemotron-70b-reward: the text is reward:-18.25."""
    text = content["choices"][0]["message"]["content"]
    found = _REWARD.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return Found({"reward": float(found[1])}, *_told(content), text=text)


def _pooled(content: Any) -> Found:
    """As vLLM's and lmdeploy's /pooling: of one text, its value, or values of its tokens, the last of which counts."""
    (item,) = content["data"]
    value = item["data"]
    if isinstance(value, list):
        value = value[-1]
    if isinstance(value, list):
        (value,) = value
    return Found({"reward": float(value)}, *_told(content))


def _classified(content: Any) -> Found:
    """As vLLM's /classify."""
    (item,) = content["data"]
    return Found({"reward": float(item["probs"][-1])}, *_told(content))


def _embedded(content: Any) -> Found:
    """As SGLang's /classify."""
    (item,) = content
    tokens = (item.get("meta_info") or {}).get("prompt_tokens")
    return Found({"reward": float(item["embedding"][0])}, num_tokens=tokens)


def _listed(content: Any) -> Found:
    """As OpenRLHF's serve_rm."""
    (value,) = content["rewards"]
    return Found({"reward": float(value)})


def _told(content: Mapping[str, Any]) -> tuple[str | None, int | None]:
    return content.get("model"), (content.get("usage") or {}).get("prompt_tokens")


def _input(model: str, text: str) -> dict[str, Any]:
    """For vLLM: no second BOS, and no softmax or sigmoid. Servers that know neither field ignore it."""
    return {"model": model, "input": [text], "add_special_tokens": False, "use_activation": False}


PROTOCOLS = {
    "nim-attributes": RewardProtocol("v1/chat/completions", _attributes, weights=_HELPSTEER2),
    "nim-reward": RewardProtocol("v1/chat/completions", _written),
    "vllm-pooling": RewardProtocol("pooling", _pooled, _input),
    "vllm-classify": RewardProtocol("classify", _classified, _input),
    "sglang-classify": RewardProtocol(
        "classify", _embedded, lambda model, text: {"model": model, "text": [text]}
    ),
    "lmdeploy-pooling": RewardProtocol(
        "pooling", _pooled, lambda model, text: {"model": model, "input": [text]}
    ),
    "openrlhf": RewardProtocol("get_reward", _listed, lambda _, text: {"query": [text]}),
}
