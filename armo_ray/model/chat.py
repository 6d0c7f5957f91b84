"""A model's tokenizer and chat template, checked when they are loaded. Needs no torch.

A conversation is scored as `prompt + response + end of turn`, where the checkpoint's own template renders the prompt
up to the header of the response. `Chat.load` verifies with probes that the template renders a conversation this way
and that prompt and response can be tokenized separately; otherwise it refuses the template. (With Llama-3's
tokenizer the split is exact: the text is split at special tokens before BPE, and a trimmed response cannot merge
with the header's newlines. Qwen's template does not trim, so the header after its last special token is tokenized
with the response.)
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
from armo_ray.model.messages import Messages
from armo_ray.model.template import render
from armo_ray.model.tokenizer_file import load_tokenizer

_THOUGHT = "</think>"
_PROBE_PROMPT = "What is 2 + 2?"
_QUESTION = [{"role": "user", "content": _PROBE_PROMPT}]
PROBE_RESPONSES = (
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
_ANSWERS = ("response", "marked")  # texts in which the response is the assistant's turn
_VERDICTS = ("+", "-")  # the only assistant turns in a conversation that a judging model reads


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template."""

    tokenizer: Tokenizer
    template: str
    family: Family  # the model's family, which determines what is rendered
    special_tokens: dict[str, str]  # text of each token by the name that templates use (bos_token, ...)
    model_max_length: int | None  # in tokens; None if the tokenizer states no limit
    fingerprint: str  # hash of everything that determines the token ids of a conversation
    bos: str = ""  # text put before the rendered conversation, if only the tokenizer adds BOS
    trims: str = "white space"  # what the template strips from a response: a key of _TRIMS
    tail: str = ""  # the end of the header, if it is encoded with the response
    response_start: str = ""  # text before a response: the tail, and what the template adds there
    response_end: str = ""  # text after a response
    # token ids from the end of the last user turn to the response, or to the newlines before it
    response_pattern: tuple[int, ...] = ()
    prefix: tuple[int, ...] = ()  # ids that the tokenizer puts before a text that is encoded as a whole

    @classmethod
    def load(cls, path: Path, family: Family = FAMILIES["armorm"]) -> "Chat":
        """Read and check tokenizer.json, tokenizer_config.json and the template of a checkpoint.

        Raises ConfigError if a file is missing or damaged, or if the template cannot be used for scoring.
        """
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (path / name).exists():
                raise ConfigError(f"{path}: no {name}: save the tokenizer in the fast format")
        tokenizer = load_tokenizer(path / "tokenizer.json")
        options = _options(path / "tokenizer_config.json")
        template = family.template or _template(path, options)
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
        """The rendered text, with BOS and the token after a response as the family wants them.

        Raises jinja2.TemplateError if the template fails, refuses the messages or exceeds the limits of
        `armo_ray.model.template`.
        """
        names = {**self.special_tokens, "add_generation_prompt": add_generation_prompt, "tools": tools}
        text = render(self.template, messages, names) + ("" if add_generation_prompt else self.family.append)
        if self.family.bos:
            return self.bos + text
        return text.removeprefix(self.special_tokens.get("bos_token", ""))

    def render_prompt(self, messages: Messages, tools: list[Any] | None = None) -> str:
        """The text before the response, including its header but without the tail, which is encoded with it."""
        prompt = self.render(messages, add_generation_prompt=True, tools=tools)
        if not prompt.endswith(self.tail):
            raise jinja2.TemplateError(f"no {self.tail!r} before the response")
        return prompt.removesuffix(self.tail)

    def render_response(self, response: str) -> str:
        """A response as the template writes it after the header, with the end of its turn."""
        if _THOUGHT in response and _THOUGHT in self.template:  # the template moves thoughts
            messages = [*_QUESTION, {"role": "assistant", "content": response}]
            whole = self.render(messages, add_generation_prompt=False)
            return whole.removeprefix(self.render_prompt(_QUESTION))
        return self.response_start + _TRIMS[self.trims](response) + self.response_end

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special-token texts become special tokens, and no token is added."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


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
    template = options.get("chat_template")
    if isinstance(template, list):  # several templates with names
        defaults = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = defaults[-1].get("template") if defaults else None
    if not isinstance(template, str):
        raise ConfigError(f"{path}: no chat template in chat_template.jinja or tokenizer_config.json")
    return template


def _text(path: Path, name: str, token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ConfigError(f"{path}/tokenizer_config.json: {name} is {token!r:.100}, not text")
    return text


def _checked(draft: Chat, path: Path) -> Chat:
    """The draft with its fields filled in from probes. Raises ConfigError if scores would not be the model's."""
    try:
        if draft.family.text == "pairs" and draft.family.bidirectional:
            return draft  # `read_pattern` checks its texts
        if draft.family.text in ("whole", "prose", "lines"):
            return _with_prefix(draft)
        draft = _with_bos(draft)
        prompt, wholes, turn_end = _rendered(draft)
        chat = _with_response_frame(draft, prompt, wholes, turn_end)
        if not _is_separate(chat, prompt, wholes) and draft.family.text in _ANSWERS:
            chat = _with_tail(chat, prompt, turn_end)
            prompt = prompt.removesuffix(chat.tail)
        if not _is_separate(chat, prompt, wholes):
            raise _Unfit(
                "prompt and response cannot be tokenized separately: a response merges with the header before it"
            )
        if draft.family.reads in ("gate", "headers"):
            _check_pattern(chat, (prompt + chat.tail).removesuffix(turn_end), wholes)
    except (_Unfit, jinja2.TemplateError) as error:
        raise ConfigError(f"{path}: chat template: {error}") from error
    return chat


def _with_prefix(draft: Chat) -> Chat:
    """The chat of a family that has its own template and leaves special tokens to the tokenizer."""
    bare, whole = draft.encode(_PROBE_PROMPT), draft.tokenizer.encode(_PROBE_PROMPT).ids
    if (size := len(whole) - len(bare)) < 0 or whole[size:] != bare:
        raise _Unfit(f"the tokenizer adds tokens after a text, not only before it: {whole}")
    return replace(draft, prefix=tuple(whole[:size]))


class _Unfit(Exception):  # noqa: N818 - reported as a ConfigError
    """The reason why a template cannot be used for scoring."""


def _with_bos(draft: Chat) -> Chat:
    """The chat with the BOS token if the tokenizer adds it and the template does not."""
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
    """A rendered prompt, the conversations with all probe responses to it, and the text after the prompt's turn."""
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
    turn_end, append = prompt[prompt.rindex(_PROBE_PROMPT) + len(_PROBE_PROMPT) :], draft.family.append
    if turn_end and wholes[0].endswith(turn_end):  # this template always adds the header of the next response
        closing = str(draft.tokenizer.id_to_token(draft.encode(turn_end)[0]))
        wholes = [whole.removesuffix(turn_end) + closing for whole in wholes]
    if append and (len(ids := draft.encode(append)) != 1 or not _is_special(draft, ids[0])):
        raise _Unfit(f"{append!r}, which follows a response, is not a special token of this tokenizer")
    return prompt, wholes, turn_end


def _responses(draft: Chat) -> tuple[str, ...]:
    return PROBE_RESPONSES if draft.family.text in _ANSWERS else _VERDICTS


def _with_response_frame(draft: Chat, prompt: str, wholes: list[str], turn_end: str) -> Chat:
    """The chat with the text around its responses, and what the template trims from them, as the probes show."""
    responses = _responses(draft)
    opening, _, closing = wholes[0][len(prompt) :].partition(responses[0])
    if any(_is_special(draft, i) for i in draft.encode(opening)):
        raise _Unfit("a prompt with its generation prompt is not how the conversation begins")
    end = [_is_special(draft, i) for i in draft.encode(closing)]
    if not end or not end[0] or sum(end) != 1 + bool(draft.family.append):
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


def _is_separate(chat: Chat, prompt: str, wholes: list[str]) -> bool:
    """Whether prompt and response give the same ids separately as together, for all probe responses."""
    responses = zip(_responses(chat), wholes, strict=True)
    return all(
        chat.encode(prompt) + chat.encode(chat.render_response(a)) == chat.encode(w) for a, w in responses
    )


def _with_tail(chat: Chat, prompt: str, turn_end: str) -> Chat:
    """The chat with the header after its last special token encoded with the response.

    Text is split at special tokens before anything else. Newlines that end the header merge with those of a
    response, so they are left out of the pattern.
    """
    special = next((i for i in reversed(chat.encode(prompt)) if _is_special(chat, i)), None)
    tail = prompt if special is None else prompt.rpartition(str(chat.tokenizer.id_to_token(special)))[2]
    if _PROBE_PROMPT in tail:
        raise _Unfit("prompt and response cannot be tokenized separately: no special token is between them")
    pattern = tuple(chat.encode(turn_end.rstrip("\n")))
    return replace(chat, tail=tail, response_start=tail + chat.response_start, response_pattern=pattern)


def _check_pattern(chat: Chat, question: str, wholes: list[str]) -> None:
    pattern, at = chat.response_pattern, len(chat.encode(question))
    for ids in map(chat.encode, wholes):
        starts = [i for i in range(len(ids)) if tuple(ids[i : i + len(pattern)]) == pattern]
        if starts != [at]:
            raise _Unfit(f"the end of the user turn must occur once, before the response; found at {starts}")
