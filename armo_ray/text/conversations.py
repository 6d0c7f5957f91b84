"""Rows of any layout become candidates: the messages before an answer, and the answer.

Nothing is dropped: a candidate that cannot be scored is returned with the reason. The shapes read are those
of TRL (explicit and implicit prompts), Anthropic HH transcripts, RewardBench 2, SimPO and Magpie rollouts,
chats in OpenAI's and ShareGPT's keys, with tools, calls of them and reasoning.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from armo_ray.model.chat import Messages
from armo_ray.text.column_roles import Parts, parts_of
from armo_ray.text.joining import is_same, joined
from armo_ray.text.layouts import Layout
from armo_ray.text.messages import AS_WRITTEN, Message, Reading, conversation, message_of, said
from armo_ray.text.paths import Rejected, kind_of
from armo_ray.text.tools import as_text, tools_of

_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer and what stands before it, or why it cannot be scored.

    `index` counts the candidates of a row; it is None where a row could not be taken apart. `extra` holds the tool
    calls and the reasoning of the answer's turn, `tools` the schemas of what it may call.
    """

    index: int | None
    role: str | None  # chosen, rejected or response
    prompt: Messages
    answer: str
    reason: str | None = None
    detail: str | None = None
    flags: tuple[str, ...] = ()
    extra: Mapping[str, Any] | None = None
    tools: list[Any] | None = None

    @property
    def turn(self) -> Message:
        """The turn of the answer, as templates take it."""
        return said("assistant", self.answer) | dict(self.extra or {})

    @property
    def is_structured(self) -> bool:
        """Whether there is more to read than roles and texts."""
        return bool(self.extra or self.tools) or any(len(message) > 2 for message in self.prompt)

    def shown(self) -> tuple[Messages, Messages]:
        """Prompt and response as role and text alone, with tools, calls and reasoning written into the text."""
        if not self.is_structured:
            return self.prompt, [self.turn]
        *before, answer = as_text([*self.prompt, self.turn], self.tools)
        return before, [answer]


class _Shared(NamedTuple):
    """What the answers of a row have in common."""

    prompt: Messages | None
    system: Message | None
    tools: list[Any] | None
    flags: frozenset[str]


def candidates_of(row: Mapping[str, Any], layout: Layout, reading: Reading = AS_WRITTEN) -> list[Candidate]:
    """The candidates of a row in their order: chosen before rejected, lists in the order of the list."""
    try:
        parts = parts_of(row, layout)
    except Rejected as verdict:
        reason, detail = verdict.args
        return [Candidate(None, None, [], "", reason, detail)]
    shared = _shared(parts, reading)
    return [
        _candidate(index, role, shared, value, reading) for index, (role, value) in enumerate(parts.answers)
    ]


def _shared(parts: Parts, reading: Reading) -> _Shared | Rejected:
    flags = set(parts.flags)
    try:
        prompt = _prompt(parts.prompt, reading, flags)
        system, tools = _system(parts.system), tools_of(parts.tools, flags)
    except Rejected as verdict:
        return verdict
    return _Shared(prompt, system, tools, frozenset(flags))


def _candidate(index: int, role: str, shared: _Shared | Rejected, value: Any, reading: Reading) -> Candidate:
    try:
        if isinstance(shared, Rejected):
            raise shared
        flags = set(shared.flags)
        before, answer = _split(shared.prompt, value, reading, flags)
        before = _instructed(shared.system, before)
        _check(before, answer, shared.tools, flags)
    except Rejected as verdict:
        reason, detail = verdict.args
        return Candidate(index, role, [], "", reason, detail)
    extra = {key: held for key, held in answer.items() if key not in ("role", "content")} or None
    found = Candidate(
        index, role, before, answer["content"], None, None, tuple(sorted(flags)), extra, shared.tools
    )
    return found if reading.tool_calls == "template" else _as_text(found)


def _as_text(found: Candidate) -> Candidate:
    """The candidate with tools, calls, their results and reasoning in its texts."""
    if not found.is_structured and all(message["role"] != "tool" for message in found.prompt):
        return found
    *before, answer = as_text([*found.prompt, found.turn], found.tools)
    flags = tuple(sorted({*found.flags, "tool_calls_as_text"}))
    return Candidate(found.index, found.role, before, answer["content"], flags=flags)


def _prompt(prompt: Any, reading: Reading, flags: set[str]) -> Messages | None:
    """The messages of the prompt column; None where the row has none, or says nothing in it."""
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
        return None
    if isinstance(prompt, str):
        messages = _transcript(prompt) if prompt.startswith("\n\nHuman:") else [said("user", prompt)]
        if messages[-1] == said("assistant", ""):
            messages.pop()  # a transcript that stops where the answer begins
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


def _instructed(system: Message | None, messages: Messages) -> Messages:
    """The messages after the system column's, which they may repeat; no prompt stays no prompt."""
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
    """A candidate's messages before its answer, and the answer's."""
    if value is None:
        raise Rejected("empty_response", "the answer is null")
    if isinstance(value, str):
        if not value.startswith("\n\nHuman:"):
            if prompt is None:
                raise Rejected("empty_prompt", "no prompt, and the text is no '\\n\\nHuman: …' transcript")
            return prompt, said("assistant", value)
        turns = _transcript(value)
    elif isinstance(value, dict):
        has_role = any(value.get(key) is not None for key in ("role", "from"))
        turns = [message_of(value if has_role else {**value, "role": "assistant"}, reading, flags)]
    elif isinstance(value, list):
        turns = conversation(value, reading, flags)
    else:
        raise Rejected("malformed_row", f"an answer is {kind_of(value)}, expected text or messages")
    if not turns:
        raise Rejected("empty_response", "the conversation is empty")
    if turns[-1]["role"] != "assistant":
        raise Rejected("no_answer_turn", f"the last turn is the {turns[-1]['role']}'s")
    return joined(prompt, turns[:-1]), turns[-1]


def _transcript(text: str) -> Messages:
    """Turns of an Anthropic HH transcript."""
    parts = _TURN.split(text)
    return [said(_HH_ROLES[name], what.strip()) for name, what in zip(parts[1::2], parts[2::2], strict=True)]


def _check(prompt: Messages, answer: Message, tools: list[Any] | None, flags: set[str]) -> None:
    """Refuse what has no defined score, and flag roles that few models were trained on."""
    if not any(m["role"] != "assistant" and m["content"].strip() for m in prompt):
        raise Rejected("empty_prompt", "nothing stands before the answer")
    if prompt[-1]["role"] == "user" and not prompt[-1]["content"].strip():
        raise Rejected("empty_prompt", "the last user turn is empty")
    if not answer["content"].strip() and not answer.get("tool_calls"):
        raise Rejected("empty_response", "the answer is empty")
    before = None
    for role in (*(message["role"] for message in prompt), "assistant"):
        if (role == "system" and before is not None) or (role == before == "assistant"):
            flags.add("odd_roles")
        before = role
    for message in (answer, *prompt):
        _check_text(message["content"] if len(message) == 2 else json.dumps(message, ensure_ascii=False))
    if tools:
        _check_text(json.dumps(tools, ensure_ascii=False))


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Rejected("malformed_row", f"not text: lone surrogate at character {error.start}") from None
