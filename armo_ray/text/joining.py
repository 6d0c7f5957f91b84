"""Joining a prompt with a conversation that may repeat it."""

import unicodedata
from itertools import takewhile

from armo_ray.model.messages import Messages
from armo_ray.text.messages import Message
from armo_ray.text.paths import Rejected


def joined(prompt: Messages | None, turns: Messages) -> Messages:
    """The messages before a response: the prompt and the turns after it, which may repeat the prompt.

    Either may omit the system messages of the other. Texts that differ only in white space or in Unicode
    normalization count as the same. Raises Rejected if prompt and turns contradict each other.
    """
    if not prompt or not turns or turns[0]["role"] == "assistant":
        return [*(prompt or []), *turns]
    (prompt_system, prompt_rest), (turns_system, turns_rest) = _split_system(prompt), _split_system(turns)
    if len(prompt_rest) == 1:  # a single question, which may be the first or the last of the conversation
        users = [message for message in turns_rest if message["role"] == "user"]
        same = any(_plain(prompt_rest[0]) == _plain(m) for m in (*users[:1], *users[-1:]))
    else:
        same = len(prompt_rest) <= len(turns_rest) and all(map(is_same, prompt_rest, turns_rest))
    if not same:
        raise Rejected("malformed_row", "the conversation does not begin with the prompt")
    same_system = len(prompt_system) == len(turns_system) and all(map(is_same, prompt_system, turns_system))
    if prompt_system and turns_system and not same_system:
        raise Rejected("malformed_row", "the system messages of the prompt and of the conversation differ")
    return [*(turns_system or prompt_system), *turns_rest]


def _split_system(messages: Messages) -> tuple[Messages, Messages]:
    """The system messages at the start, and the others."""
    first = list(takewhile(lambda message: message["role"] == "system", messages))
    return first, messages[len(first) :]


def is_same(a: Message, b: Message) -> bool:
    """Whether two messages are equal apart from white space and Unicode normalization."""
    return a == b or (_plain(a) == _plain(b) and a | {"content": ""} == b | {"content": ""})


def _plain(message: Message) -> str:
    return " ".join(unicodedata.normalize("NFC", message["content"]).split())
