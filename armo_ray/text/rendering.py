"""Rendering of conversations with the model's template, split into prompt and response, with nothing left out.

Text that spells special tokens cannot forge a turn. A conversation is rejected if the template refuses it, leaves
out text, or does not allow a split into prompt and response. Conversations with text only are checked once for each
sequence of roles; one with tools, tool calls or reasoning is checked by itself, which takes four renderings.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jinja2
import numpy as np
from tokenizers import Tokenizer

from armo_ray.model.chat import Chat
from armo_ray.model.messages import Messages
from armo_ray.text.conversations import Candidate
from armo_ray.text.messages import said
from armo_ray.text.render_check import Path, changed, left_out, texts_of, unused
from armo_ray.text.tokenized import Ids, Prompt

# Errors of a template that refuses messages or does not expect the type of a value.
_REFUSALS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError)
_HEADER = 200  # upper bound in characters for the header before a response
_MOST_SHAPES = 4096  # how many sequences of roles are cached
_THOUGHT = "</think>"
_OPTION = "--tool-calls text writes tools, tool calls, their results and reasoning into the text"


@dataclass
class Response:
    """A response as the template writes it after the header.

    `flagged` says that it contains the text of a special token. If that is to stay text, `mark` breaks it up.
    """

    text: str = ""
    flagged: bool = False
    mark: str = ""
    error: tuple[str, str] | None = None  # reason and detail


class _Check(NamedTuple):
    """The result of checking a prompt."""

    error: tuple[str, str] | None = None  # reason and detail if it cannot be scored
    # whether responses depend on the prompt, and must be cut out of the whole conversation
    whole: bool = False


class Renderer:
    """Renders conversations for one chat.

    With `plain`, text that spells a special token stays text; otherwise it becomes the token, as in the released code.
    """

    def __init__(self, chat: Chat, plain: bool) -> None:
        self.chat, self.plain = chat, plain
        added = chat.tokenizer.get_added_tokens_decoder()
        # the token after a step is special here even if the tokenizer does not say so
        special = [t.content for t in added.values() if t.special or t.content == chat.family.mark]
        self._text_only = _text_only(chat.tokenizer, special)
        self._special = re.compile(
            "|".join(re.escape(t) for t in sorted(special, key=len, reverse=True)) or r"(?!)"
        )
        self._openings = sorted({t[:2] for t in special})  # two quick searches rule out all 257 tokens
        self._shapes: dict[tuple[str, ...], _Check] = {}
        self._moves_thoughts = _THOUGHT in chat.template

    def prompt(self, messages: Messages, tools: list[Any] | None = None) -> Prompt:
        """A rendered prompt. Its ids are set only if text in it looks like special tokens."""
        prompt = Prompt(messages, tools)
        prompt.flagged = self.has_special(_texts(messages, tools))
        try:
            prompt.error, prompt.whole = self._check(messages, tools)
            if prompt.error is None:
                broken, broken_tools, mark = self._broken(messages, tools, prompt.flagged)
                prompt.text = self.chat.render_prompt(broken, broken_tools)
                prompt.ids = self.ids(prompt.text, mark) if mark else None
        except _REFUSALS as error:
            prompt.error = _refusal(error, _is_structured(messages, tools))
        # text with marks could equal the text of another prompt; token ids cannot
        own = prompt.text.encode() if prompt.ids is None else prompt.ids.tobytes()
        prompt.id = hashlib.blake2b(own, digest_size=16).hexdigest()
        return prompt

    def response(self, candidate: Candidate, prompt: Prompt) -> Response:
        """A rendered response: the text that the template adds to the prompt."""
        turn = candidate.turn
        flagged = self.has_special(_texts([turn], None))
        try:
            if candidate.extra or prompt.whole:
                return self._of_whole(candidate, flagged)
            if self._moves_thoughts and _THOUGHT in candidate.response:
                lost = left_out(self._write_whole, [said("user", "?"), turn], None, first=1)
                if lost is not None:
                    return Response(
                        error=("unsupported_content", "the chat template leaves out text of the response")
                    )
            ((broken,), _, mark) = self._broken([turn], None, flagged)
            return Response(self.chat.render_response(broken["content"]), flagged, mark)
        except _REFUSALS as error:
            return Response(error=_refusal(error, bool(candidate.extra)))

    def ids(self, text: str, mark: str) -> Ids:
        """The ids of a text in which a mark breaks up text that spells special tokens.

        The tokenizer splits text at special tokens first, so the pieces between them can be encoded separately.
        """
        if json.dumps(mark)[1:-1] in text:
            raise ValueError(
                "it escapes non-ASCII characters, which cannot be combined with text that spells a special token"
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
        """The ids of a text, with special-token texts encoded as plain text."""
        ids: list[int] = self._text_only.encode(text, add_special_tokens=False).ids
        return ids

    @property
    def for_text(self) -> Tokenizer:
        """The tokenizer for text of users and models without a template."""
        return self._text_only if self.plain else self.chat.tokenizer

    def _broken(
        self, messages: Messages, tools: list[Any] | None, flagged: bool
    ) -> tuple[Messages, list[Any] | None, str]:
        """A conversation with a mark inside each special-token text, so that only the template's own tokens match."""
        if not (flagged and self.plain):
            return messages, tools, ""
        mark = unused("".join(texts_of(messages, tools)))

        def change(text: str, path: Path) -> str:
            return self._special.sub(lambda hit: hit[0][0] + mark + hit[0][1:], text)

        return *changed(messages, tools, change), mark

    def has_special(self, texts: Iterable[str]) -> bool:
        return any(
            any(o in text for o in self._openings) and self._special.search(text) is not None
            for text in texts
        )

    def _check(self, messages: Messages, tools: list[Any] | None) -> _Check:
        if _is_structured(messages, tools) or self._has_thoughts(messages):
            return self._check_rendering(messages, tools)
        shape = tuple(message["role"] for message in messages)
        if shape not in self._shapes:
            if len(self._shapes) == _MOST_SHAPES:
                self._shapes.clear()
            try:
                probe = [said(role, "What is 2 + 2?") for role in shape]
                self._shapes[shape] = self._check_rendering(probe, None)
            except _REFUSALS as error:
                self._shapes[shape] = _Check(_refusal(error, False))
        return self._shapes[shape]

    def _has_thoughts(self, messages: Messages) -> bool:
        return self._moves_thoughts and any(_THOUGHT in message["content"] for message in messages)

    def _check_rendering(self, messages: Messages, tools: list[Any] | None) -> _Check:
        """Check that a prompt is rendered completely, and that a response follows it as after any other prompt."""
        if (lost := left_out(self.chat.render_prompt, messages, tools)) is not None:
            return _Check(("unsupported_content", f"the chat template leaves out {lost}; {_OPTION}"))
        if self.chat.family.text not in ("response", "marked"):
            return _Check()
        response = "It is 4."
        begun = self.chat.render_prompt(messages, tools)
        whole = self._write_whole([*messages, said("assistant", response)], tools)
        return _Check(whole=not whole.startswith(begun + self.chat.render_response(response)))

    def _write_whole(self, messages: Messages, tools: list[Any] | None) -> str:
        return self.chat.render(messages, add_generation_prompt=False, tools=tools)

    def _of_whole(self, candidate: Candidate, flagged: bool) -> Response:
        """The response as the text that the rendered conversation has after the rendered prompt."""
        messages, tools = [*candidate.prompt, candidate.turn], candidate.tools
        if (lost := left_out(self._write_whole, messages, tools, len(messages) - 1)) is not None:
            return Response(error=("unsupported_content", f"the chat template leaves out {lost}; {_OPTION}"))
        broken, broken_tools, mark = self._broken(messages, tools, flagged)
        begun = self.chat.render_prompt(broken[:-1], broken_tools)
        whole = self._write_whole(broken, broken_tools)
        text = whole.removeprefix(begun)
        if text == whole or not text.endswith(self.chat.response_end) or not self._is_separate(begun, text):
            detail = "the chat template does not allow this conversation to be split into prompt and response"
            return Response(error=("unsupported_content", detail))
        return Response(text, flagged, mark)

    def _is_separate(self, begun: str, text: str) -> bool:
        """Whether prompt and response can be encoded separately, checked from the last special token of the prompt."""
        special = list(self._special.finditer(begun, max(0, len(begun) - _HEADER)))
        if not special:
            return False
        header = begun[special[-1].end() :]
        return self.chat.encode(header) + self.chat.encode(text) == self.chat.encode(header + text)


def _text_only(tokenizer: Tokenizer, special: Sequence[str]) -> Tokenizer:
    """A tokenizer that takes texts of special tokens for plain text, and shares the model of the given one."""
    own = Tokenizer(tokenizer.model)  # a copy through JSON would take a second with the Llama-3 vocabulary
    own.normalizer, own.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    # a tokenizer numbers tokens that its model lacks in the order in which they are added
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    added = [
        token
        for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
        if number >= size or own.token_to_id(token.content) is not None  # not one that the model hides
    ]
    for token in added:
        token.special = token.content in special
    own.add_tokens(added)
    own.encode_special_tokens = True
    return own


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
