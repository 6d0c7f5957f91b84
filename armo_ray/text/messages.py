"""Parsing of a message from a data set into role and text, with the tool calls and the reasoning of its turn.

OpenAI's, ShareGPT's and TRL's keys are read; a union of these has nulls in Parquet, which count as absent. A key
that is known to carry content but cannot be read rejects the candidate; `unread_keys` lists the keys that are ignored.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from armo_ray.model.messages import Messages
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
_CALLS = ("function_call", "tool_call")  # roles of ShareGPT's assistant turns that only call tools
_REASONING = ("reasoning_content", "reasoning", "thinking")
# Keys with content that is not passed to templates: OpenAI's, Hugging Face's and ms-swift's names.
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
_TEXT_BLOCKS = ("text", "input_text", "output_text")
_THOUGHT_BLOCKS = ("thinking", "reasoning")
_BLOCK_KEYS = {"type", "cache_control", "annotations", "id", "index", "signature"}  # these carry no text


@dataclass(frozen=True)
class Reading:
    """Options for reading messages. They must stay the same throughout a run.

    roles: maps further role names to system, user, assistant or tool.
    tool_calls: "template" passes tool calls, tools and reasoning to the model's template; "text" writes them into
        the text of their turns.
    """

    roles: Mapping[str, str] = field(default_factory=dict)
    tool_calls: str = "template"

    @cached_property
    def role_of(self) -> dict[str, str]:
        """Maps every role name, as `_key` normalizes it, to system, user, assistant or tool."""
        names = {name: role for role, synonyms in ROLES.items() for name in synonyms}
        return names | {_key(name): role for name, role in self.roles.items()}

    def recorded(self) -> dict[str, Any]:
        """The options that differ from the defaults, as stored in `_run.json`."""
        roles = {"role": dict(self.roles)} if self.roles else {}
        return roles | ({} if self.tool_calls == "template" else {"tool_calls": self.tool_calls})

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Reading":
        """The options of a run, from the settings in its `_run.json`."""
        return cls(settings.get("role", {}), settings.get("tool_calls", "template"))


AS_WRITTEN = Reading()


def said(role: str, content: str) -> Message:
    """A message with text only."""
    return {"role": role, "content": content}


def conversation(value: Iterable[Any], reading: Reading, flags: set[str]) -> Messages:
    """Parsed messages in their order. Adds to `flags`; raises Rejected if a message cannot be read."""
    return [message_of(message, reading, flags) for message in value]


def message_of(message: Any, reading: Reading, flags: set[str]) -> Message:
    """A message for a chat template; `tool_calls` and `reasoning_content` are present only if it has any."""
    if not isinstance(message, dict):
        raise Rejected("malformed_row", f"a message is {kind_of(message)}, expected role and content")
    if _is_plain(message, reading):
        return said(message["role"], message["content"])
    for key in _UNSUPPORTED:
        if not is_absent(message.get(key)):
            raise Rejected(
                "unsupported_content", f"a message has {key}, which is not passed to the chat template"
            )
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
    """Whether a message has only text and a standard role. Most do, and this check makes them ten times faster."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str) or reading.role_of.get(role) != role:
        return False
    return (
        role != "tool"
        and content != ""
        and not any(value is not None for key, value in message.items() if key not in ("role", "content"))
    )


def either(message: Mapping[str, Any], a: str, b: str) -> Any:
    """The value under one of two keys; in a union of two formats the unused key is null or empty."""
    values = [message[key] for key in (a, b) if message.get(key) not in (None, "")]
    if len(values) == 2 and values[0] != values[1]:
        raise Rejected("malformed_row", f"{a} and {b} of a message differ")
    return values[0] if values else message.get(a, message.get(b))


def unread_keys(value: Any) -> set[str]:
    """The non-empty keys of messages that are ignored, such as name or weight."""
    if isinstance(value, dict):
        return {key for key, entry in value.items() if key not in _READ and not is_absent(entry)}
    return set().union(*map(unread_keys, value)) if isinstance(value, list) else set()


def _key(name: str) -> str:
    return name.strip().casefold().replace("-", "_").replace(" ", "_")


def _role(message: Mapping[str, Any], reading: Reading) -> str:
    """The role under the key `role` or `from`. If both are present, they must mean the same role."""
    roles = [_role_named(message[key], reading) for key in ("role", "from") if message.get(key) is not None]
    if not roles:
        raise Rejected("malformed_row", f"a message has no role; its keys are {', '.join(sorted(message))}")
    if len(set(roles)) == 2:
        raise Rejected(
            "malformed_row", f"role and from of a message differ: {message['role']!r}, {message['from']!r}"
        )
    return roles[0]


def _role_named(name: Any, reading: Reading) -> str:
    if not isinstance(name, str):
        raise Rejected("malformed_row", f"a role is {kind_of(name)}, expected text")
    key = _key(name)
    if key not in reading.role_of and key not in _CALLS:
        advice = f"map it with --role {name}=user, or to system, assistant or tool"
        raise Rejected("malformed_row", f"unknown role {name!r}: {advice}")
    return reading.role_of.get(key, key)


def _called(content: Any, flags: set[str]) -> list[Any]:
    """The calls of a turn whose text is a call, or a list of calls, as JSON."""
    calls = calls_of({"tool_calls": content if isinstance(content, list) else [content]}, flags)
    if not calls:
        raise Rejected(
            "malformed_row", "a turn with the role function_call is empty, expected a call as JSON"
        )
    return calls


def _text_of(content: Any) -> tuple[str, list[str]]:
    """The text of a message's content, and the list of thoughts in it."""
    if isinstance(content, str):
        return content, []
    if isinstance(content, dict) and "type" in content:
        content = [content]
    if not isinstance(content, list):
        raise Rejected("malformed_row", f"the content of a message is {kind_of(content)}, expected text")
    blocks = [_block(block) for block in content]
    return "".join(text for kind, text in blocks if kind == "text"), [
        text for kind, text in blocks if kind != "text"
    ]


def _block(block: Any) -> tuple[str, str]:
    """A block of a message's content: its kind, text or thought, and its text."""
    if isinstance(block, str):
        return "text", block
    if not isinstance(block, dict):
        raise Rejected("malformed_row", f"a content block is {kind_of(block)}, expected an object")
    kind = block.get("type") or "text"
    is_text, is_thought = kind in _TEXT_BLOCKS, kind in _THOUGHT_BLOCKS
    if not is_text and not is_thought:
        raise Rejected("unsupported_content", f"a content block is of type {kind!r}, not text")
    keys = ("text",) if is_text else ("thinking", "text")
    text_key = next((key for key in keys if block.get(key) is not None), keys[0])
    if other := [
        key for key, entry in block.items() if key not in (_BLOCK_KEYS | {text_key}) and not is_absent(entry)
    ]:
        raise Rejected("unsupported_content", f"a content block has {other[0]} in addition to its text")
    if not isinstance(block.get(text_key), str):
        raise Rejected("malformed_row", f"a content block is {kind_of(block.get(text_key))}, expected text")
    return "text" if is_text else "thought", block[text_key]


def _reasoning(message: Mapping[str, Any], thoughts: list[str]) -> str:
    """The reasoning of a turn, under any of its keys or in blocks of its content."""
    texts = ["\n".join(thoughts)] if thoughts else []
    for key in _REASONING:
        value = message.get(key)
        if isinstance(value, list | dict) and not is_absent(value):
            raise Rejected("unsupported_content", f"{key} of a message is {kind_of(value)}, not text")
        if isinstance(value, str) and value.strip():
            texts.append(value)
    if len(set(texts)) > 1:
        raise Rejected("malformed_row", "a message has several reasoning texts, and they differ")
    return texts[0] if texts else ""
