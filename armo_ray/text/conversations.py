"""Conversion of rows of any layout into candidates: a response and the messages before it.

Nothing is dropped: a candidate that cannot be scored is returned with the reason. Supported formats are those
of TRL (explicit and implicit prompts), Anthropic HH transcripts, RewardBench 2, SimPO and Magpie rollouts, and
chats with OpenAI's or ShareGPT's keys, including tools, tool calls and reasoning.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from armo_ray.model.messages import Messages
from armo_ray.text.column_roles import RowContent, content_of
from armo_ray.text.joining import is_same, joined
from armo_ray.text.layouts import Layout
from armo_ray.text.messages import AS_WRITTEN, Message, Reading, conversation, message_of, said
from armo_ray.text.paths import Rejected, kind_of
from armo_ray.text.tools import as_text, tools_of

_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One response and the messages before it, or the reason why it cannot be scored.

    `index` counts the candidates of a row from 0; it is None if the row could not be parsed. `place` counts them in the
    order in which the row holds them, which differs where a column says which of them was chosen. `extra` holds the
    tool calls and the reasoning of the response's turn, `tools` the schemas of the tools that it may call.
    """

    index: int | None
    role: str | None  # chosen, rejected or response
    prompt: Messages
    response: str
    reason: str | None = None
    detail: str | None = None
    flags: tuple[str, ...] = ()
    extra: Mapping[str, Any] | None = None
    tools: list[Any] | None = None
    place: int | None = field(default=None, compare=False)  # unknown where text was kept with scores

    @property
    def turn(self) -> Message:
        """The response as a message for a chat template."""
        return said("assistant", self.response) | dict(self.extra or {})

    @property
    def is_structured(self) -> bool:
        """Whether the conversation has tools, tool calls or reasoning in addition to roles and text."""
        return bool(self.extra or self.tools) or any(len(message) > 2 for message in self.prompt)

    def shown(self) -> tuple[Messages, Messages]:
        """Prompt and response as messages of role and text only; tools, calls and reasoning are part of the text."""
        if not self.is_structured:
            return self.prompt, [self.turn]
        *before, response = as_text([*self.prompt, self.turn], self.tools)
        return before, [response]


class _Shared(NamedTuple):
    """What the responses of a row have in common."""

    prompt: Messages | None
    system: Message | None
    tools: list[Any] | None
    flags: frozenset[str]


def candidates_of(row: Mapping[str, Any], layout: Layout, reading: Reading = AS_WRITTEN) -> list[Candidate]:
    """The candidates of a row: chosen before rejected, and lists in their own order."""
    try:
        content = content_of(row, layout)
    except Rejected as rejection:
        reason, detail = rejection.args
        return [Candidate(None, None, [], "", reason, detail)]
    shared = _shared(content, reading)
    places = content.places or range(len(content.responses))
    return [
        _candidate(index, place, role, shared, value, reading)
        for index, (place, (role, value)) in enumerate(zip(places, content.responses, strict=True))
    ]


def _shared(content: RowContent, reading: Reading) -> _Shared | Rejected:
    flags = set(content.flags)
    try:
        prompt = _prompt(content.prompt, reading, flags)
        system, tools = _system(content.system), tools_of(content.tools, flags)
    except Rejected as rejection:
        return rejection
    return _Shared(prompt, system, tools, frozenset(flags))


def _candidate(
    index: int, place: int, role: str, shared: _Shared | Rejected, value: Any, reading: Reading
) -> Candidate:
    try:
        if isinstance(shared, Rejected):
            raise shared
        flags = set(shared.flags)
        before, response = _split(shared.prompt, value, reading, flags)
        before = _with_system(shared.system, before)
        _check(before, response, shared.tools, flags)
    except Rejected as rejection:
        reason, detail = rejection.args
        return Candidate(index, role, [], "", reason, detail, place=place)
    extra = {key: entry for key, entry in response.items() if key not in ("role", "content")} or None
    candidate = Candidate(
        index, role, before, response["content"], None, None, tuple(sorted(flags)), extra, shared.tools, place
    )
    return candidate if reading.tool_calls == "template" else _as_text(candidate)


def _as_text(candidate: Candidate) -> Candidate:
    """The candidate with tools, tool calls, their results and reasoning written into the text of its messages."""
    if not candidate.is_structured and all(message["role"] != "tool" for message in candidate.prompt):
        return candidate
    *before, response = as_text([*candidate.prompt, candidate.turn], candidate.tools)
    flags = tuple(sorted({*candidate.flags, "tool_calls_as_text"}))
    return Candidate(
        candidate.index, candidate.role, before, response["content"], flags=flags, place=candidate.place
    )


def _prompt(prompt: Any, reading: Reading, flags: set[str]) -> Messages | None:
    """The messages of the prompt column; None if there is no prompt or it is blank."""
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
        return None
    if isinstance(prompt, str):
        messages = _transcript(prompt) if prompt.startswith("\n\nHuman:") else [said("user", prompt)]
        if messages[-1] == said("assistant", ""):
            messages.pop()  # a transcript that stops where the response begins
        return messages
    if not isinstance(prompt, list):
        raise Rejected("malformed_row", f"prompt is {kind_of(prompt)}, expected text or messages")
    messages = conversation(prompt, reading, flags)
    is_blank = all(m == said("user", m["content"]) and not m["content"].strip() for m in messages)
    return None if is_blank else messages


def _system(system: Any) -> Message | None:
    if system is not None and not isinstance(system, str):
        raise Rejected("malformed_row", f"system is {kind_of(system)}, expected text")
    return said("system", system) if system and system.strip() else None


def _with_system(system: Message | None, messages: Messages) -> Messages:
    """The messages after that of the system column, which they may repeat. An empty prompt stays empty."""
    if system is None or not messages:
        return messages
    if messages[0]["role"] != "system":
        return [system, *messages]
    if not is_same(messages[0], system):
        raise Rejected("malformed_row", "the system column and the system message of the conversation differ")
    return messages


def _split(
    prompt: Messages | None, value: Any, reading: Reading, flags: set[str]
) -> tuple[Messages, Message]:
    """The messages before a response, and the message of the response."""
    if value is None:
        raise Rejected("empty_response", "the response is null")
    if isinstance(value, str):
        if not value.startswith("\n\nHuman:"):
            if prompt is None:
                raise Rejected("empty_prompt", "no prompt, and the text is not a '\\n\\nHuman: …' transcript")
            return prompt, said("assistant", value)
        turns = _transcript(value)
    elif isinstance(value, dict):
        has_role = any(value.get(key) is not None for key in ("role", "from"))
        turns = [message_of(value if has_role else {**value, "role": "assistant"}, reading, flags)]
    elif isinstance(value, list):
        turns = conversation(value, reading, flags)
    else:
        raise Rejected("malformed_row", f"a response is {kind_of(value)}, expected text or messages")
    if not turns:
        raise Rejected("empty_response", "the conversation is empty")
    if turns[-1]["role"] != "assistant":
        raise Rejected("no_answer_turn", f"the last turn is from the {turns[-1]['role']}, not the assistant")
    return joined(prompt, turns[:-1]), turns[-1]


def _transcript(text: str) -> Messages:
    """The turns of an Anthropic HH transcript."""
    _, *pieces = _TURN.split(text)
    return [said(_HH_ROLES[name], turn.strip()) for name, turn in zip(pieces[::2], pieces[1::2], strict=True)]


def _check(prompt: Messages, response: Message, tools: list[Any] | None, flags: set[str]) -> None:
    """Reject a conversation that has no defined score, and flag orders of roles that few models were trained on."""
    if not any(m["role"] != "assistant" and m["content"].strip() for m in prompt):
        raise Rejected("empty_prompt", "there is no prompt before the response")
    if prompt[-1]["role"] == "user" and not prompt[-1]["content"].strip():
        raise Rejected("empty_prompt", "the last user turn is empty")
    if not response["content"].strip() and not response.get("tool_calls"):
        raise Rejected("empty_response", "the response is empty")
    before = None
    for role in (*(message["role"] for message in prompt), "assistant"):
        if (role == "system" and before is not None) or (role == before == "assistant"):
            flags.add("odd_roles")
        before = role
    for message in (response, *prompt):
        _check_text(message["content"] if len(message) == 2 else json.dumps(message, ensure_ascii=False))
    if tools:
        _check_text(json.dumps(tools, ensure_ascii=False))


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Rejected(
                "malformed_row", f"not valid text: lone surrogate at character {error.start}"
            ) from None
