"""Rows of any layout become candidates: the messages before an answer, and the answer.

Nothing is dropped: a candidate that cannot be scored is returned with the reason. The shapes read are those
of TRL (explicit and implicit prompts), Anthropic HH transcripts, RewardBench 2, SimPO and Magpie rollouts,
chats in OpenAI's and ShareGPT's keys.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from armo_ray.chat import Messages
from armo_ray.text.layouts import Layout
from armo_ray.text.parts import Rejected, kind_of, parts_of

_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer and what stands before it, or why it cannot be scored.

    `index` counts the candidates of a row; it is None where a row could not be taken apart.
    """

    index: int | None
    role: str | None  # chosen, rejected or response
    prompt: Messages
    answer: str
    reason: str | None = None
    detail: str | None = None
    flags: tuple[str, ...] = ()


def candidates_of(row: Mapping[str, Any], layout: Layout) -> list[Candidate]:
    """The candidates of a row in their order: chosen before rejected, lists in the order of the list."""
    try:
        parts = parts_of(row, layout)
        if parts.tools:
            raise Rejected(
                "malformed_row", "tools: the schemas of tools are not rendered; --ignore their column"
            )
    except Rejected as verdict:
        return [_whole_row(*verdict.args)]
    prompt = _prompt(parts.prompt)
    found = [
        _candidate(index, role, prompt, parts.system, value)
        for index, (role, value) in enumerate(parts.answers)
    ]
    return [replace(one, flags=parts.flags) for one in found] if parts.flags else found


def _whole_row(reason: str, detail: str) -> Candidate:
    return Candidate(None, None, [], "", reason, detail)


def _candidate(
    index: int, role: str, prompt: Messages | Rejected | None, system: Any, value: Any
) -> Candidate:
    try:
        if isinstance(prompt, Rejected):
            raise prompt
        before, answer = _split(prompt, value)
        before = _instructed(system, before)
        _check(before, answer)
    except Rejected as verdict:
        reason, detail = verdict.args
        return Candidate(index, role, [], "", reason, detail)
    return Candidate(index, role, before, answer)


def _prompt(prompt: Any) -> Messages | Rejected | None:
    """The messages of the prompt column; None where the row has none."""
    try:
        if isinstance(prompt, str):
            messages = _transcript(prompt) if prompt.startswith("\n\nHuman:") else [_message("user", prompt)]
            if messages[-1] == _message("assistant", ""):
                messages.pop()  # a transcript that stops where the answer begins
        elif isinstance(prompt, list):
            messages = _conversation(prompt)
        elif prompt is None:
            return None
        else:
            raise Rejected("malformed_row", f"prompt is {kind_of(prompt)}, expected text or messages")
    except Rejected as verdict:
        return verdict
    return messages


def _instructed(system: Any, messages: Messages) -> Messages:
    """The messages after the system column's, which they may repeat; no prompt stays no prompt."""
    if system is not None and not isinstance(system, str):
        raise Rejected("malformed_row", f"system is {kind_of(system)}, expected text")
    first = _message("system", system or "")
    return [first, *messages] if first["content"].strip() and messages and messages[0] != first else messages


def _split(prompt: Messages | None, value: Any) -> tuple[Messages, str]:
    """A candidate's messages before its answer, and the answer."""
    if value is None:
        raise Rejected("empty_response", "the answer is null")
    if isinstance(value, str):
        if not value.startswith("\n\nHuman:"):
            if prompt is None:
                raise Rejected("empty_prompt", "no prompt, and the text is no '\\n\\nHuman: …' transcript")
            return prompt, value
        turns = _transcript(value)
    elif isinstance(value, dict):
        turns = [_turn(value if {"role", "from"} & value.keys() else {"role": "assistant", **value})]
    elif isinstance(value, list):
        turns = _conversation(value)
    else:
        raise Rejected("malformed_row", f"an answer is {kind_of(value)}, expected text or messages")
    if not turns:
        raise Rejected("empty_response", "the conversation is empty")
    if turns[-1]["role"] != "assistant":
        raise Rejected("no_answer_turn", f"the last turn is the {turns[-1]['role']}'s")
    return _joined(prompt, turns[:-1]), turns[-1]["content"]


def _joined(prompt: Messages | None, turns: Messages) -> Messages:
    """What stands before an answer: the prompt and the turns after it, which may repeat the prompt."""
    if not prompt or not turns or turns[0]["role"] == "assistant":
        return [*(prompt or []), *turns]
    asked = [m["content"].strip() for m in turns if m["role"] == "user"]
    if len(prompt) == 1:  # a question alone, which may be the first or the last of the conversation
        same = prompt[0]["content"].strip() in (*asked[:1], *asked[-1:])
    else:
        same = turns[: len(prompt)] == prompt
    if not same:
        raise Rejected("malformed_row", "the conversation does not begin with the prompt")
    return turns


def _conversation(value: list[Any]) -> Messages:
    return [_turn(message) for message in value]


def _turn(message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise Rejected("malformed_row", f"a message is {kind_of(message)}, expected role and content")
    role = message.get("role", message.get("from"))
    role = _SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
    content = message.get("content", message.get("value"))
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if role not in _ROLES:
        raise Rejected("malformed_row", f"unknown role {role!r}: expected {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise Rejected("malformed_row", f"the content of a message is {kind_of(content)}, expected text")
    return _message(role, content)


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _transcript(text: str) -> Messages:
    """Turns of an Anthropic HH transcript."""
    parts = _TURN.split(text)
    return [
        _message(_HH_ROLES[name], said.strip()) for name, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _check(prompt: Messages, answer: str) -> None:
    """Refuse what has no defined score."""
    if not prompt or not any(m["role"] != "assistant" and m["content"].strip() for m in prompt):
        raise Rejected("empty_prompt", "nothing stands before the answer")
    before = "start"
    for message in prompt:
        role = message["role"]
        if (role == "system" and before != "start") or (role == before == "assistant"):
            raise Rejected("malformed_row", f"roles out of order: {role} after {before}")
        before = role
    if before == "assistant":
        raise Rejected("malformed_row", "roles out of order: the answer follows an assistant's turn")
    if before == "user" and not prompt[-1]["content"].strip():
        raise Rejected("empty_prompt", "the last user turn is empty")
    if not answer.strip():
        raise Rejected("empty_response", "the answer is empty")
    for text in (answer, *(message["content"] for message in prompt)):
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise Rejected(
                    "malformed_row", f"not text: lone surrogate at character {error.start}"
                ) from None
