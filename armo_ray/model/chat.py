"""A model's tokenizer and chat template, checked at load, without torch.

A conversation is scored as `prompt + response + end of turn`: the prompt rendered by the checkpoint's own
template up to the header of the response. `Chat.load` proves on probes that this is what the template renders
and that the two parts can be tokenized apart, and refuses the template otherwise. (On the Llama-3 tokenizer
the split is exact: special tokens cut the text before BPE, and a trimmed response cannot join the header's
newlines. Qwen's template trims nothing: there the header behind its last special token goes with the response.)
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from armo_ray.errors import ConfigError
from armo_ray.model.families import FAMILIES, Family
from armo_ray.model.template import render

Messages = list[dict[str, Any]]  # role and content, and what else the template is given of a turn

# BPE's word cache: 10,000 by default, which real text overflows; 65,536 took 470k tokens/s to 600k.
_CACHED_WORDS = 1 << 16
_THOUGHT = "</think>"
_PROBE_PROMPT = "What is 2 + 2?"
_QUESTION = [{"role": "user", "content": _PROBE_PROMPT}]
_PROBE_RESPONSES = (
    "It is 4.",
    "\n\n  It is 4,\n\nof course. \t\n",
    "4",
    "",
    "\u00a0\u2003four\u3000",
    "\u200b\ufeff4\u200d",
    "\r\n```python\r\nprint(4)\r\n```\r\n",
    "的\u0301 👩‍👩‍👧 \u202e4",
)
_TRIMS: dict[str, Callable[[str], str]] = {
    "white space": str.strip,
    "newlines": lambda response: response.lstrip("\n"),
    "nothing": lambda response: response,
}
_SIGNS = ("+", "-")  # the only responses in a conversation that a judge reads


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its template."""

    tokenizer: Tokenizer
    template: str
    family: Family  # of the model, which decides what is rendered
    special_tokens: dict[str, str]  # the names that templates use (bos_token, ...) with their texts
    model_max_length: int | None  # tokens, None where the tokenizer states none
    fingerprint: str  # of all that decides which token ids a conversation becomes
    bos: str = ""  # put before what the template renders: tokenizers add what templates leave out
    trims: str = "white space"  # what the template strips of a response: that, newlines before it, or nothing
    tail: str = ""  # the end of the header, where it is encoded with the response
    response_start: str = ""  # what goes before a response: the tail, and what templates add there
    response_end: str = ""  # what follows a response
    response_pattern: tuple[
        int, ...
    ] = ()  # ids from the end of the last user turn to the response, or its new lines

    @classmethod
    def load(cls, path: Path, family: Family = FAMILIES["armorm"]) -> "Chat":
        """Read tokenizer.json, tokenizer_config.json and the template of a checkpoint, and check them."""
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (path / name).exists():
                raise ConfigError(f"{path}: no {name}: save the tokenizer in the fast format")
        tokenizer = _tokenizer(path / "tokenizer.json")
        options = _options(path / "tokenizer_config.json")
        template = _template(path, options)
        special = {k: _text(path, k, v) for k, v in options.items() if k.endswith("_token") and v}
        limit = options.get("model_max_length")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float))):
            raise ConfigError(
                f"{path}/tokenizer_config.json: model_max_length is {limit!r:.100}, not a number"
            )
        limit = int(limit) if limit and limit < 1e9 else None
        digest = hashlib.blake2b((path / "tokenizer.json").read_bytes(), digest_size=16)
        digest.update(json.dumps([template, special], sort_keys=True).encode())
        return _checked(cls(tokenizer, template, family, special, limit, digest.hexdigest()), path)

    def render(self, messages: Messages, add_generation_prompt: bool, tools: list[Any] | None = None) -> str:
        """The template's text. Raises jinja2.TemplateError where the template fails, refuses the messages, or does
        more than the limits of `armo_ray.model.template`."""
        names = {**self.special_tokens, "add_generation_prompt": add_generation_prompt, "tools": tools}
        text = render(self.template, messages, names)
        if self.family.bos:
            return self.bos + text
        return text.removeprefix(self.special_tokens.get("bos_token", ""))

    def render_prompt(self, messages: Messages, tools: list[Any] | None = None) -> str:
        """Everything before the response, its header included, but the tail that goes with the response."""
        prompt = self.render(messages, add_generation_prompt=True, tools=tools)
        if not prompt.endswith(self.tail):
            raise jinja2.TemplateError(f"no {self.tail!r} before the response")
        return prompt.removesuffix(self.tail)

    def render_response(self, response: str) -> str:
        """A response as the template writes it after its header, with the end of its turn."""
        if (
            _THOUGHT in response and _THOUGHT in self.template
        ):  # the template takes thoughts and response apart
            said = [*_QUESTION, {"role": "assistant", "content": response}]
            whole = self.render(said, add_generation_prompt=False)
            return whole.removeprefix(self.render_prompt(_QUESTION))
        return self.response_start + _TRIMS[self.trims](response) + self.response_end

    def encode(self, text: str) -> list[int]:
        """Token ids, special-token texts as special tokens, none added."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _tokenizer(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # of no class of its own
        raise ConfigError(f"{file}: not a tokenizer: {error!s:.300}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if hasattr(tokenizer.model, "_resize_cache"):
        tokenizer.model._resize_cache(_CACHED_WORDS)
    return tokenizer


def _options(file: Path) -> dict[str, Any]:
    try:
        options = json.loads(_read(file))
    except ValueError as error:
        raise ConfigError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(options, dict):
        raise ConfigError(f"{file}: expected a JSON object")
    return options


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as text: {error}") from error


def _template(path: Path, options: dict[str, Any]) -> str:
    if (path / "chat_template.jinja").exists():
        return _read(path / "chat_template.jinja")
    found = options.get("chat_template")
    if isinstance(found, list):  # several named ones
        named = [entry for entry in found if isinstance(entry, dict) and entry.get("name") == "default"]
        found = named[-1].get("template") if named else None
    if not isinstance(found, str):
        raise ConfigError(f"{path}: no chat template in chat_template.jinja or tokenizer_config.json")
    return found


def _text(path: Path, name: str, token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ConfigError(f"{path}/tokenizer_config.json: {name} is {token!r:.100}, not a text")
    return text


def _checked(draft: Chat, path: Path) -> Chat:
    """The chat with what its template was found to do; ConfigError where a score would not be the model's."""
    try:
        draft = _begun(draft)
        prompt, wholes, turn_end = _rendered(draft)
        chat = _understood(draft, prompt, wholes, turn_end)
        if not _apart(chat, prompt, wholes) and draft.family.text == "response":
            chat = _joined(chat, prompt, turn_end)
            prompt = prompt.removesuffix(chat.tail)
        if not _apart(chat, prompt, wholes):
            raise _Unfit(
                "prompt and response cannot be tokenized apart: a response joins the header before it"
            )
        if draft.family.reads in ("gate", "headers"):
            _check_pattern(chat, (prompt + chat.tail).removesuffix(turn_end), wholes)
    except (_Unfit, jinja2.TemplateError) as error:
        raise ConfigError(f"{path}: chat template: {error}") from error
    return chat


class _Unfit(Exception):  # noqa: N818 - a verdict, told as a ConfigError
    """Why a template cannot be scored with."""


def _begun(draft: Chat) -> Chat:
    """The chat with the BOS token that its tokenizer puts before a text whose template renders none."""
    name = draft.special_tokens.get("bos_token", "")
    bos = draft.tokenizer.token_to_id(name)
    if bos is None:
        return draft
    rendered = draft.encode(draft.render_prompt(_QUESTION))
    if bos not in rendered and draft.family.bos and draft.tokenizer.encode("").ids[:1] == [bos]:
        return replace(draft, bos=name)
    if rendered.count(bos) != draft.family.bos or (draft.family.bos and rendered[0] != bos):
        expected = "begin with exactly one" if draft.family.bos else "have no"
        raise _Unfit(f"a conversation must {expected} BOS token, found {rendered.count(bos)}")
    return draft


def _rendered(draft: Chat) -> tuple[str, list[str], str]:
    """A prompt, the whole conversations of all probe responses to it, and what ends the prompt's turn."""
    prompt = draft.render_prompt(_QUESTION)
    wholes = [
        draft.render([*_QUESTION, {"role": "assistant", "content": response}], add_generation_prompt=False)
        for response in _responses(draft)
    ]
    if _PROBE_PROMPT not in prompt:
        raise _Unfit("it changes a question by more than trimming it")
    if not wholes[0].startswith(prompt):
        raise _Unfit("a prompt with its generation prompt is not how the conversation begins")
    if _responses(draft)[0] not in wholes[0][len(prompt) :]:
        raise _Unfit("it changes a response by more than trimming it")
    turn_end = prompt[prompt.rindex(_PROBE_PROMPT) + len(_PROBE_PROMPT) :]
    if turn_end and wholes[0].endswith(
        turn_end
    ):  # this template opens the next response whether asked to or not
        closing = str(draft.tokenizer.id_to_token(draft.encode(turn_end)[0]))
        wholes = [whole.removesuffix(turn_end) + closing for whole in wholes]
    return prompt, wholes, turn_end


def _responses(draft: Chat) -> tuple[str, ...]:
    return _PROBE_RESPONSES if draft.family.text == "response" else _SIGNS


def _understood(draft: Chat, prompt: str, wholes: list[str], turn_end: str) -> Chat:
    """The chat with what stands around its responses, and whether it trims them, as the probes show."""
    responses = _responses(draft)
    opening, _, closing = wholes[0][len(prompt) :].partition(responses[0])
    if any(_is_special(draft, i) for i in draft.encode(opening)):
        raise _Unfit("a prompt with its generation prompt is not how the conversation begins")
    end = [_is_special(draft, i) for i in draft.encode(closing)]
    if not end or not end[0] or sum(end) != 1:
        raise _Unfit(f"a response must end in one end-of-turn token, not in {closing!r}")
    for trims in _TRIMS:
        pattern = tuple(draft.encode(turn_end))
        chat = replace(
            draft, trims=trims, response_start=opening, response_end=closing, response_pattern=pattern
        )
        if all(prompt + chat.render_response(a) == w for a, w in zip(responses, wholes, strict=True)):
            return chat
    raise _Unfit("it changes a response by more than trimming it")


def _is_special(draft: Chat, token: int) -> bool:
    added = draft.tokenizer.get_added_tokens_decoder()
    return token in added and bool(added[token].special)


def _apart(chat: Chat, prompt: str, wholes: list[str]) -> bool:
    responses = zip(_responses(chat), wholes, strict=True)
    return all(
        chat.encode(prompt) + chat.encode(chat.render_response(a)) == chat.encode(w) for a, w in responses
    )


def _joined(chat: Chat, prompt: str, turn_end: str) -> Chat:
    """The chat with the header after its last special token encoded with the response: special tokens cut a text
    before anything else does. New lines that end the header join a response's, and so mark nothing."""
    special = next((i for i in reversed(chat.encode(prompt)) if _is_special(chat, i)), None)
    tail = prompt if special is None else prompt.rpartition(str(chat.tokenizer.id_to_token(special)))[2]
    if _PROBE_PROMPT in tail:
        raise _Unfit("prompt and response cannot be tokenized apart: no special token is between them")
    pattern = tuple(chat.encode(turn_end.rstrip("\n")))
    return replace(chat, tail=tail, response_start=tail + chat.response_start, response_pattern=pattern)


def _check_pattern(chat: Chat, question: str, wholes: list[str]) -> None:
    pattern, at = chat.response_pattern, len(chat.encode(question))
    for ids in map(chat.encode, wholes):
        starts = [i for i in range(len(ids)) if tuple(ids[i : i + len(pattern)]) == pattern]
        if starts != [at]:
            raise _Unfit(f"the end of the user turn must occur once, before the response; found at {starts}")
