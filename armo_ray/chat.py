"""A model's tokenizer and chat template, checked at load, without torch.

A conversation is scored as `prompt + answer + end of turn`: the prompt rendered by the checkpoint's own
template up to the header of the answer. `Chat.load` proves on probes that this is what the template renders
and that the two parts can be tokenized apart, and refuses the template otherwise. (On the Llama-3 tokenizer
the split is exact: special tokens cut the text before BPE, and a trimmed answer cannot join the header's
newlines.)
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from armo_ray.errors import ConfigError

Messages = list[dict[str, str]]

# BPE's word cache: 10,000 by default, which real text overflows; 65,536 took 470k tokens/s to 600k.
_CACHED_WORDS = 1 << 16
_PROBE_PROMPT = "What is 2 + 2?"
_PROBE_ANSWERS = (
    "It is 4.",
    "\n\n  It is 4,\n\nof course. \t\n",
    "4",
    "",
    "\u00a0\u2003four\u3000",
    "\u200b\ufeff4\u200d",
    "\r\n```python\r\nprint(4)\r\n```\r\n",
    "的\u0301 👩‍👩‍👧 \u202e4",
)


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its template."""

    tokenizer: Tokenizer
    template: str
    special_tokens: dict[str, str]  # the names that templates use (bos_token, ...) with their texts
    model_max_length: int | None  # tokens, None where the tokenizer states none
    trims: bool  # whether the template strips white space around an answer
    answer_end: str  # what follows an answer
    answer_pattern: tuple[int, ...]  # ids from the end of the last user turn to the answer
    fingerprint: str  # of all that decides which token ids a conversation becomes

    @classmethod
    def load(cls, path: Path) -> "Chat":
        """Read tokenizer.json, tokenizer_config.json and the template of a checkpoint, and check them."""
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (path / name).exists():
                raise ConfigError(f"{path}: no {name}: save the tokenizer in the fast format")
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if hasattr(tokenizer.model, "_resize_cache"):
            tokenizer.model._resize_cache(_CACHED_WORDS)
        options = json.loads((path / "tokenizer_config.json").read_text("utf-8"))
        template = _template(path, options)
        special = {k: _text(v) for k, v in options.items() if k.endswith("_token") and v}
        limit = options.get("model_max_length")
        limit = int(limit) if limit and limit < 1e9 else None
        digest = hashlib.blake2b((path / "tokenizer.json").read_bytes(), digest_size=16)
        digest.update(json.dumps([template, special], sort_keys=True).encode())
        draft = cls(tokenizer, template, special, limit, True, "", (), digest.hexdigest())
        return _checked(draft, path)

    def render(self, messages: Messages, add_generation_prompt: bool) -> str:
        """The template's text. Raises jinja2.TemplateError where the template refuses the messages."""
        # 0.8 s to import; processes that only read configuration never come here
        from transformers.utils.chat_template_utils import render_jinja_template

        names: dict[str, Any] = dict(self.special_tokens)
        rendered: Any = render_jinja_template(
            conversations=[messages],
            chat_template=self.template,
            add_generation_prompt=add_generation_prompt,
            **names,
        )
        return str(rendered[0][0])

    def render_prompt(self, messages: Messages) -> str:
        """Everything before the answer, its header included."""
        return self.render(messages, add_generation_prompt=True)

    def render_answer(self, answer: str) -> str:
        """An answer as the template writes it after its header, with the end of its turn."""
        return (answer.strip() if self.trims else answer) + self.answer_end

    def encode(self, text: str) -> list[int]:
        """Token ids, special-token texts as special tokens, none added."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _template(path: Path, options: dict[str, Any]) -> str:
    if (path / "chat_template.jinja").exists():
        return (path / "chat_template.jinja").read_text("utf-8")
    template = options.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if not isinstance(template, str):
        raise ConfigError(f"{path}: no chat template in chat_template.jinja or tokenizer_config.json")
    return template


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _checked(draft: Chat, path: Path) -> Chat:
    """The chat with what its template was found to do; ConfigError where a score would not be the model's."""
    try:
        prompt, wholes, turn_end = _rendered(draft)
        chat = _understood(draft, prompt, wholes, turn_end)
        for answer, whole in zip(_PROBE_ANSWERS, wholes, strict=True):
            if chat.encode(prompt) + chat.encode(chat.render_answer(answer)) != chat.encode(whole):
                raise _Unfit(
                    f"prompt and answer cannot be tokenized apart: {answer!r} joins the header before it"
                )
        ids, pattern = chat.encode(wholes[0]), chat.answer_pattern
        bos = draft.tokenizer.token_to_id(draft.special_tokens.get("bos_token", ""))
        if bos is not None and (ids[0] != bos or ids.count(bos) != 1):
            raise _Unfit(f"a conversation must begin with exactly one BOS token, found {ids.count(bos)}")
        starts = [i for i in range(len(ids)) if tuple(ids[i : i + len(pattern)]) == pattern]
        if starts != [len(chat.encode(prompt)) - len(pattern)]:
            raise _Unfit(f"the end of the user turn must occur once, before the answer; found at {starts}")
    except (_Unfit, jinja2.TemplateError) as error:
        raise ConfigError(f"{path}: chat template: {error}") from error
    return chat


class _Unfit(Exception):  # noqa: N818 - a verdict, told as a ConfigError
    """Why a template cannot be scored with."""


def _rendered(draft: Chat) -> tuple[str, list[str], str]:
    """A prompt, the whole conversations of all probe answers to it, and what ends the prompt's turn."""
    question = [{"role": "user", "content": _PROBE_PROMPT}]
    prompt = draft.render_prompt(question)
    wholes = [
        draft.render([*question, {"role": "assistant", "content": answer}], add_generation_prompt=False)
        for answer in _PROBE_ANSWERS
    ]
    if _PROBE_PROMPT not in prompt:
        raise _Unfit("it changes a question by more than trimming it")
    if _PROBE_ANSWERS[0] not in wholes[0]:
        raise _Unfit("it changes an answer by more than trimming it")
    if not wholes[0].startswith(prompt + _PROBE_ANSWERS[0]):
        raise _Unfit("a prompt with its generation prompt is not how the conversation begins")
    turn_end = prompt[prompt.rindex(_PROBE_PROMPT) + len(_PROBE_PROMPT) :]
    if wholes[0].endswith(turn_end):  # this template opens the next answer whether asked to or not
        closing = str(draft.tokenizer.id_to_token(draft.encode(turn_end)[0]))
        wholes = [whole.removesuffix(turn_end) + closing for whole in wholes]
    return prompt, wholes, turn_end


def _understood(draft: Chat, prompt: str, wholes: list[str], turn_end: str) -> Chat:
    """The chat with the end of its answers, and whether it trims them, as the probes show."""
    closing = wholes[0][len(prompt) + len(_PROBE_ANSWERS[0]) :]
    end, added = draft.encode(closing), draft.tokenizer.get_added_tokens_decoder()
    if len(end) != 1 or end[0] not in added or not added[end[0]].special:
        raise _Unfit(f"an answer must end in one end-of-turn token, not in {closing!r}")
    for trims in (True, False):
        pattern = tuple(draft.encode(turn_end))
        chat = replace(draft, trims=trims, answer_end=closing, answer_pattern=pattern)
        if all(prompt + chat.render_answer(a) == w for a, w in zip(_PROBE_ANSWERS, wholes, strict=True)):
            return chat
    raise _Unfit("it changes an answer by more than trimming it")
