"""Conversations as the model's template writes them: prompt and answer apart, and nothing of them left out.

Texts that spell special tokens cannot forge a turn. What a template refuses, leaves out, or does not let be split
into prompt and answer is told as the reason of a reject. A conversation of texts alone is tried out once for its
sequence of roles; one with tools, calls or reasoning by itself, which takes four renderings.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jinja2
import numpy as np
from tokenizers import Tokenizer

from armo_ray.model.chat import Chat, Messages
from armo_ray.text.conversations import Candidate
from armo_ray.text.messages import said
from armo_ray.text.render_check import Path, changed, left_out, texts_of, unused
from armo_ray.text.tokenized import Ids, Prompt

# What a template raises that refuses messages, or does not expect the type of a value.
_REFUSALS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError)
_HEADER = 200  # characters: the header before an answer is shorter
_MOST_SHAPES = 4096  # sequences of roles that are remembered
_THOUGHT = "</think>"
_OPTION = "--tool-calls text writes tools, tool calls, their results and reasoning into the text"


@dataclass
class Answer:
    """An answer as the template writes it after its header; `mark` is in the special-token texts of a flagged one."""

    text: str = ""
    flagged: bool = False
    mark: str = ""
    error: tuple[str, str] | None = None  # reason and detail


class _Tried(NamedTuple):
    """What became of a prompt: why it cannot be scored, and whether answers to it are written in a way of their own."""

    error: tuple[str, str] | None = None
    whole: bool = False


class Renderer:
    """Renders with one chat. Without `plain`, special-token texts are special tokens, as in the released code."""

    def __init__(self, chat: Chat, plain: bool) -> None:
        self.chat, self.plain = chat, plain
        self._text_only = Tokenizer.from_str(chat.tokenizer.to_str())
        self._text_only.encode_special_tokens = True
        special = [t.content for t in chat.tokenizer.get_added_tokens_decoder().values() if t.special]
        self._special = re.compile(
            "|".join(re.escape(t) for t in sorted(special, key=len, reverse=True)) or r"(?!)"
        )
        self._openings = sorted({t[:2] for t in special})  # two searches instead of one for each of 257
        self._shapes: dict[tuple[str, ...], _Tried] = {}
        self._moves_thoughts = _THOUGHT in chat.template

    def prompt(self, messages: Messages, tools: list[Any] | None = None) -> Prompt:
        """A prompt's text, and its ids where texts in it look like special tokens."""
        prompt = Prompt(messages, tools)
        prompt.flagged = self._has_special(_texts(messages, tools))
        try:
            prompt.error, prompt.whole = self._tried(messages, tools)
            if prompt.error is None:
                broken, told, mark = self._broken(messages, tools, prompt.flagged)
                prompt.text = self.chat.render_prompt(broken, told)
                prompt.ids = self.ids(prompt.text, mark) if mark else None
        except _REFUSALS as error:
            prompt.error = _refusal(error, _is_structured(messages, tools))
        # a text with marks could be another prompt's own: its ids cannot
        own = prompt.text.encode() if prompt.ids is None else prompt.ids.tobytes()
        prompt.id = hashlib.blake2b(own, digest_size=16).hexdigest()
        return prompt

    def answer(self, candidate: Candidate, prompt: Prompt) -> Answer:
        """An answer's text, as what the template adds to the prompt."""
        turn = candidate.turn
        flagged = self._has_special(_texts([turn], None))
        try:
            if candidate.extra or prompt.whole:
                return self._of_whole(candidate, flagged)
            if self._moves_thoughts and _THOUGHT in candidate.answer:
                lost = left_out(self._write_whole, [said("user", "?"), turn], None, first=1)
                if lost is not None:
                    return Answer(
                        error=("unsupported_content", "the chat template leaves out a part of the answer")
                    )
            ((broken,), _, mark) = self._broken([turn], None, flagged)
            return Answer(self.chat.render_answer(broken["content"]), flagged, mark)
        except _REFUSALS as error:
            return Answer(error=_refusal(error, bool(candidate.extra)))

    def ids(self, text: str, mark: str) -> Ids:
        """The ids of a text whose texts that spell special tokens are broken by a mark.

        Special tokens cut a text before anything else does, so the pieces between them encode alone as they do
        together.
        """
        if json.dumps(mark)[1:-1] in text:
            raise ValueError(
                "it writes characters beyond ASCII as escapes, among them the text of a special token"
            )
        ids: list[int] = []
        at = 0
        for hit in self._special.finditer(text):
            ids += self.encode_text(text[at : hit.start()].replace(mark, ""))
            ids += self.chat.encode(hit[0])
            at = hit.end()
        ids += self.encode_text(text[at:].replace(mark, ""))
        return np.array(ids, np.int32)

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text in which nothing is a special token."""
        ids: list[int] = self._text_only.encode(text, add_special_tokens=False).ids
        return ids

    def _broken(
        self, messages: Messages, tools: list[Any] | None, flagged: bool
    ) -> tuple[Messages, list[Any] | None, str]:
        """A conversation whose special-token texts a mark breaks, so that what matches is the template's own."""
        if not (flagged and self.plain):
            return messages, tools, ""
        mark = unused("".join(texts_of(messages, tools)))

        def change(text: str, path: Path) -> str:
            return self._special.sub(lambda hit: hit[0][0] + mark + hit[0][1:], text)

        return *changed(messages, tools, change), mark

    def _has_special(self, texts: Iterable[str]) -> bool:
        return any(
            any(o in text for o in self._openings) and self._special.search(text) is not None
            for text in texts
        )

    def _tried(self, messages: Messages, tools: list[Any] | None) -> _Tried:
        if _is_structured(messages, tools) or self._has_thoughts(messages):
            return self._try(messages, tools)
        shape = tuple(message["role"] for message in messages)
        if shape not in self._shapes:
            if len(self._shapes) == _MOST_SHAPES:
                self._shapes.clear()
            try:
                self._shapes[shape] = self._try([said(role, "What is 2 + 2?") for role in shape], None)
            except _REFUSALS as error:
                self._shapes[shape] = _Tried(_refusal(error, False))
        return self._shapes[shape]

    def _has_thoughts(self, messages: Messages) -> bool:
        return self._moves_thoughts and any(_THOUGHT in message["content"] for message in messages)

    def _try(self, messages: Messages, tools: list[Any] | None) -> _Tried:
        """Whether a prompt is rendered with all that it says, and goes on with any answer as it does alone."""
        if (lost := left_out(self.chat.render_prompt, messages, tools)) is not None:
            return _Tried(("unsupported_content", f"the chat template leaves out {lost}; {_OPTION}"))
        if self.chat.family.text != "answer":
            return _Tried()
        answer = "It is 4."
        begun = self.chat.render_prompt(messages, tools)
        whole = self._write_whole([*messages, said("assistant", answer)], tools)
        return _Tried(whole=not whole.startswith(begun + self.chat.render_answer(answer)))

    def _write_whole(self, messages: Messages, tools: list[Any] | None) -> str:
        return self.chat.render(messages, add_generation_prompt=False, tools=tools)

    def _of_whole(self, candidate: Candidate, flagged: bool) -> Answer:
        """The answer as what a conversation has more than its prompt."""
        messages, tools = [*candidate.prompt, candidate.turn], candidate.tools
        if (lost := left_out(self._write_whole, messages, tools, len(messages) - 1)) is not None:
            return Answer(error=("unsupported_content", f"the chat template leaves out {lost}; {_OPTION}"))
        broken, told, mark = self._broken(messages, tools, flagged)
        begun, whole = self.chat.render_prompt(broken[:-1], told), self._write_whole(broken, told)
        text = whole.removeprefix(begun)
        if text == whole or not text.endswith(self.chat.answer_end) or not self._is_apart(begun, text):
            detail = "the chat template does not let this conversation be cut into prompt and answer"
            return Answer(error=("unsupported_content", detail))
        return Answer(text, flagged, mark)

    def _is_apart(self, begun: str, text: str) -> bool:
        """Whether prompt and answer encode alone as they do together, from the last special token on."""
        special = list(self._special.finditer(begun, max(0, len(begun) - _HEADER)))
        if not special:
            return False
        header = begun[special[-1].end() :]
        return self.chat.encode(header) + self.chat.encode(text) == self.chat.encode(header + text)


def _texts(messages: Messages, tools: list[Any] | None) -> list[str]:
    if _is_structured(messages, tools):
        return texts_of(messages, tools)
    return [message["content"] for message in messages]


def _is_structured(messages: Messages, tools: list[Any] | None) -> bool:
    return bool(tools) or any(len(message) > 2 for message in messages)


def _refusal(error: Exception, is_structured: bool) -> tuple[str, str]:
    if not is_structured:
        return "malformed_row", f"the chat template refuses the messages: {error}"
    return "unsupported_content", f"the chat template refuses the messages: {error}; {_OPTION}"
