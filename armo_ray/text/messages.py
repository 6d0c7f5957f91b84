"""One message as data sets write it becomes role and text, with the tool calls and the reasoning of its turn.

Read are OpenAI's, ShareGPT's and TRL's keys, and what a union of these leaves null in Parquet. What is known to
carry content and cannot be read here rejects the candidate; `unread_keys` tells what is left of a message.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from armo_ray.model.chat import Messages
from armo_ray.text.paths import Rejected, kind_of
from armo_ray.text.tools import calls_of, is_absent

Message = dict[str, Any]

ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "chatbot", "bot", "model", "ai", "bing", "bard"),
    "tool": (
        *("tool", "tool_response", "tool_result", "function", "function_response", "function_result"),
        *("observation", "environment", "ipython"),
    ),
}
_CALLS = ("function_call", "tool_call")  # ShareGPT's turns of an assistant that are calls alone
_REASONING = ("reasoning_content", "reasoning", "thinking")
# Keys that carry content which no template here is given: OpenAI's, Hugging Face's and ms-swift's names.
_UNSUPPORTED = (
    *(
        "refusal",
        "image",
        "images",
        "audio",
        "audios",
        "video",
        "videos",
        "files",
        "attachments",
        "documents",
    ),
    *("tools", "functions", "reasoning_details", "thinking_blocks"),
)
_READ = {"role", "from", "content", "value", "tool_calls", "function_call", *_REASONING, *_UNSUPPORTED}
_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning")
_PART_KEYS = {"type", "cache_control", "annotations", "id", "index", "signature"}  # that carry no text


@dataclass(frozen=True)
class Reading:
    """How messages are read besides what they say themselves; part of what must be the same in all of a run.

    roles: further names of roles, and what each is: system, user, assistant or tool.
    tool_calls: "template" gives tool calls, tools and reasoning to the model's template; "text" writes them into
        the text of their turns.
    """

    roles: Mapping[str, str] = field(default_factory=dict)
    tool_calls: str = "template"

    @cached_property
    def known(self) -> dict[str, str]:
        """The role of every name, which is looked up in lower case."""
        names = {name: role for role, synonyms in ROLES.items() for name in synonyms}
        return names | {_key(name): role for name, role in self.roles.items()}

    def recorded(self) -> dict[str, Any]:
        """What differs from the default, as `_run.json` holds it."""
        roles = {"role": dict(self.roles)} if self.roles else {}
        return roles | ({} if self.tool_calls == "template" else {"tool_calls": self.tool_calls})

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> "Reading":
        """What the identity of a run recorded."""
        return cls(identity.get("role", {}), identity.get("tool_calls", "template"))


AS_WRITTEN = Reading()


def said(role: str, content: str) -> Message:
    """A message of text alone."""
    return {"role": role, "content": content}


def conversation(value: Iterable[Any], reading: Reading, flags: set[str]) -> Messages:
    """Messages in their order; `flags` takes what is to be known of them. Raises Rejected."""
    return [message_of(message, reading, flags) for message in value]


def message_of(message: Any, reading: Reading, flags: set[str]) -> Message:
    """A message as templates take it: `tool_calls` and `reasoning_content` are there only where it has any."""
    if not isinstance(message, dict):
        raise Rejected("malformed_row", f"a message is {kind_of(message)}, expected role and content")
    if _is_plain(message, reading):
        return said(message["role"], message["content"])
    for key in _UNSUPPORTED:
        if not is_absent(message.get(key)):
            raise Rejected("unsupported_content", f"{key} of a message: no template is given it")
    role, content = _role(message, reading), either(message, "content", "value")
    if role in _CALLS:
        return said("assistant", "") | {"tool_calls": _called(content, flags)}
    calls = calls_of(message, flags)
    text, thoughts = _text_of("" if content is None and calls else content)
    thought = _reasoning(message, thoughts)
    extra = {"tool_calls": calls, "reasoning_content": thought}
    if role == "tool":
        extra |= {key: message[key] for key in ("name", "tool_call_id") if isinstance(message.get(key), str)}
    return said(role, text) | {key: value for key, value in extra.items() if value}


def _is_plain(message: Mapping[str, Any], reading: Reading) -> bool:
    """Whether there is nothing but a text of a role under its usual name: most are, and take a tenth of the time."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str) or reading.known.get(role) != role:
        return False
    return (
        role != "tool"
        and content != ""
        and not any(held is not None for key, held in message.items() if key != "role" and key != "content")
    )


def either(message: Mapping[str, Any], one: str, other: str) -> Any:
    """The value under one of two keys: a union of both leaves null, or no text, under the one that is not used."""
    values = [message[key] for key in (one, other) if message.get(key) not in (None, "")]
    if len(values) == 2 and values[0] != values[1]:
        raise Rejected("malformed_row", f"{one} and {other} of a message differ")
    return values[0] if values else message.get(one, message.get(other))


def unread_keys(value: Any) -> set[str]:
    """The keys of messages that nothing reads, such as name or weight, where they hold something."""
    if isinstance(value, dict):
        return {key for key, held in value.items() if key not in _READ and not is_absent(held)}
    return set().union(*map(unread_keys, value)) if isinstance(value, list) else set()


def _key(name: str) -> str:
    return name.strip().casefold().replace("-", "_").replace(" ", "_")


def _role(message: Mapping[str, Any], reading: Reading) -> str:
    """The role that `role` or `from` name, whichever is there; both may name it in their own words."""
    found = {
        key: _role_named(message[key], reading) for key in ("role", "from") if message.get(key) is not None
    }
    if not found:
        raise Rejected("malformed_row", f"a message has no role; its keys are {', '.join(sorted(message))}")
    if len(set(found.values())) == 2:
        raise Rejected(
            "malformed_row", f"role and from of a message differ: {message['role']!r}, {message['from']!r}"
        )
    return next(iter(found.values()))


def _role_named(name: Any, reading: Reading) -> str:
    if not isinstance(name, str):
        raise Rejected("malformed_row", f"a role is {kind_of(name)}, expected text")
    key = _key(name)
    if key not in reading.known and key not in _CALLS:
        advice = f"map it with --role {name}=user, or to system, assistant or tool"
        raise Rejected("malformed_row", f"unknown role {name!r}: {advice}")
    return reading.known.get(key, key)


def _called(content: Any, flags: set[str]) -> list[Any]:
    """The calls of a turn whose text is one, or a list of them, as JSON."""
    calls = calls_of({"tool_calls": content if isinstance(content, list) else [content]}, flags)
    if not calls:
        raise Rejected("malformed_row", "a turn of the role function_call is empty, expected a call as JSON")
    return calls


def _text_of(content: Any) -> tuple[str, list[str]]:
    """The text of a content, and the thoughts among its parts."""
    if isinstance(content, str):
        return content, []
    if isinstance(content, dict) and "type" in content:
        content = [content]
    if not isinstance(content, list):
        raise Rejected("malformed_row", f"the content of a message is {kind_of(content)}, expected text")
    parts = [_part(part) for part in content]
    return "".join(text for kind, text in parts if kind == "text"), [
        text for kind, text in parts if kind != "text"
    ]


def _part(part: Any) -> tuple[str, str]:
    """A part of a content: text or thought, and what it says."""
    if isinstance(part, str):
        return "text", part
    if not isinstance(part, dict):
        raise Rejected("malformed_row", f"a part of a content is {kind_of(part)}, expected an object")
    kind = part.get("type") or "text"
    is_text, is_thought = kind in _TEXT_PARTS, kind in _THOUGHT_PARTS
    if not is_text and not is_thought:
        raise Rejected("unsupported_content", f"a part of a content is of type {kind!r}, not text")
    keys = ("text",) if is_text else ("thinking", "text")
    found = next((key for key in keys if part.get(key) is not None), keys[0])
    if other := [
        key for key, held in part.items() if key not in (_PART_KEYS | {found}) and not is_absent(held)
    ]:
        raise Rejected("unsupported_content", f"a part of a content has {other[0]} beside its text")
    if not isinstance(part.get(found), str):
        raise Rejected("malformed_row", f"a part of a content is {kind_of(part.get(found))}, expected text")
    return "text" if is_text else "thought", part[found]


def _reasoning(message: Mapping[str, Any], thoughts: list[str]) -> str:
    """The reasoning of a turn under any of its names, or among the parts of its content."""
    found = ["\n".join(thoughts)] if thoughts else []
    for key in _REASONING:
        value = message.get(key)
        if isinstance(value, list | dict) and not is_absent(value):
            raise Rejected("unsupported_content", f"{key} of a message is {kind_of(value)}, not text")
        if isinstance(value, str) and value.strip():
            found.append(value)
    if len(set(found)) > 1:
        raise Rejected("malformed_row", "a message has more than one reasoning, and they differ")
    return found[0] if found else ""
