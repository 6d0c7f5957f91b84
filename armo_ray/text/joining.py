"""A prompt and a conversation that may repeat it become one."""

import unicodedata
from itertools import takewhile

from armo_ray.model.chat import Messages
from armo_ray.text.messages import Message
from armo_ray.text.paths import Rejected


def joined(prompt: Messages | None, turns: Messages) -> Messages:
    """What stands before an answer: the prompt and the turns after it, which may repeat the prompt.

    Either may leave out the system messages of the other. Texts that differ in white space or in the normal form
    of their characters alone are the same.
    """
    if not prompt or not turns or turns[0]["role"] == "assistant":
        return [*(prompt or []), *turns]
    (told, asked), (begun, rest) = _parted(prompt), _parted(turns)
    if len(asked) == 1:  # a question alone, which may be the first or the last of the conversation
        users = [message for message in rest if message["role"] == "user"]
        same = any(_plain(asked[0]) == _plain(m) for m in (*users[:1], *users[-1:]))
    else:
        same = len(asked) <= len(rest) and all(map(is_same, asked, rest))
    if not same:
        raise Rejected("malformed_row", "the conversation does not begin with the prompt")
    if told and begun and not (len(told) == len(begun) and all(map(is_same, told, begun))):
        raise Rejected("malformed_row", "the system messages of the prompt and of the conversation differ")
    return [*(begun or told), *rest]


def _parted(messages: Messages) -> tuple[Messages, Messages]:
    """The system messages at the start, and the others."""
    first = list(takewhile(lambda message: message["role"] == "system", messages))
    return first, messages[len(first) :]


def is_same(one: Message, other: Message) -> bool:
    """Whether two messages say the same, but for white space and the normal form of characters."""
    return one == other or (_plain(one) == _plain(other) and one | {"content": ""} == other | {"content": ""})


def _plain(message: Message) -> str:
    return " ".join(unicodedata.normalize("NFC", message["content"]).split())
