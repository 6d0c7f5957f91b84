"""What process models and encoders need of a tokenizer beside its chat template. Needs no torch."""

import jinja2

from armo_ray.errors import ConfigError
from armo_ray.model.chat import PROBE_RESPONSES, Chat
from armo_ray.model.families import PAIR_MARKS, Family
from armo_ray.model.messages import Messages

_QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
BLANK_LINE = "\n\n"
_PARAGRAPHS = ("Add 2 and 2.", "It is $4$", "(b) 4", "4")


def read_pattern(chat: Chat) -> tuple[int, ...]:
    """The token ids by which a head finds what it reads: the token after each step, or the response pattern.

    Raises ConfigError if the text after each step is not one token, or if an encoder's tokenizer joins two texts in
    another way than the family's template.
    """
    family = chat.family
    if family.reads == "sides":
        return _sides(chat)
    if family.bidirectional:
        _check_pairs(chat)
    if not family.mark:
        if family.by_step and family.reads == "response":
            _check_paragraphs(chat)
        return chat.response_pattern
    ids = tuple(chat.encode(family.mark))
    if len(ids) != 1:
        raise ConfigError(
            f"family {family.name}: {family.mark!r}, which is read after each step, is {len(ids)} tokens in this "
            f"tokenizer"
        )
    if family.text == "lines" and (chat.prefix or "bos_token" not in chat.special_tokens):
        raise ConfigError(
            f"family {family.name}: its tokenizer must have a BOS token and not add it to every text by itself"
        )
    return ids


def _check_pairs(chat: Chat) -> None:
    before = chat.encode(chat.render_prompt(_QUESTION))
    for response in PROBE_RESPONSES:
        expected: list[int] = chat.tokenizer.encode(_QUESTION[0]["content"], response).ids
        if before + chat.encode(chat.render_response(response)) != expected:
            raise ConfigError(
                f"family {chat.family.name}: this tokenizer does not encode a question and its response as "
                f"[CLS] question [SEP] response [SEP], each text by itself: {response!r} becomes {expected[:50]}"
            )


def _sides(chat: Chat) -> tuple[int, ...]:
    """The tokens before a question and two responses. Raises ConfigError if they are none, or not before each text."""
    marks = [chat.encode(mark) for mark in PAIR_MARKS]
    if any(len(ids) != 1 for ids in marks):
        raise ConfigError(f"family {chat.family.name}: {PAIR_MARKS} are not one token each: {marks}")
    for response in filter(None, PROBE_RESPONSES):
        turns = [*_QUESTION, *[{"role": "assistant", "content": response}] * 2]
        texts = zip(PAIR_MARKS, turns, strict=True)
        apart = [i for mark, m in texts for i in chat.tokenizer.encode(mark + m["content"]).ids]
        if chat.encode(chat.render_prompt(turns)) != apart:
            raise ConfigError(
                f"family {chat.family.name}: this tokenizer does not encode a text by itself between [CLS] and [SEP]"
            )
    return tuple(i for (i,) in marks)


def header_end(chat: Chat) -> int:
    """The last token of the header of a response."""
    return chat.encode(chat.render_prompt(_QUESTION) + chat.response_start)[-1]


def _check_paragraphs(chat: Chat) -> None:
    """Raise ConfigError if a paragraph is not encoded by itself, as its end could not be found then."""
    whole = chat.encode(BLANK_LINE.join(_PARAGRAPHS))
    apart = [i for text in _PARAGRAPHS[:-1] for i in chat.encode(text + BLANK_LINE)]
    header = chat.encode(chat.render_prompt(_QUESTION) + chat.response_start + _PARAGRAPHS[0])
    behind = chat.encode(_PARAGRAPHS[0])
    if whole != apart + chat.encode(_PARAGRAPHS[-1]) or header[-len(behind) :] != behind:
        raise ConfigError(
            f"family {chat.family.name}: its tokenizer joins a paragraph with the text before it"
        )


def spelled(chat: Chat) -> list[int]:
    """The ids of the letters of the token after each step. Raises ConfigError if one of them has no token."""
    (mark,) = read_pattern(chat)
    letters = str(chat.tokenizer.id_to_token(mark))
    ids = [i for letter in letters if (i := chat.tokenizer.token_to_id(letter)) is not None]
    if len(ids) < len(letters) or mark in ids:
        raise ConfigError(
            f"family {chat.family.name}: {letters!r}, the token after each step, has no tokens for its letters: text "
            f"could not be told from it"
        )
    return ids


def with_system(messages: Messages, family: Family) -> Messages:
    """The messages after the system prompt of the family, unless they have one."""
    if family.system is None or any(message["role"] == "system" for message in messages):
        return messages
    return [{"role": "system", "content": family.system}, *messages]


def has_system(chat: Chat) -> bool:
    """Whether the template puts a system prompt of its own before a conversation that has none."""
    own = chat.render_prompt(_QUESTION).removeprefix(chat.special_tokens.get("bos_token", ""))
    try:
        return not chat.render_prompt([{"role": "system", "content": ""}, *_QUESTION]).endswith(own)
    except jinja2.TemplateError:
        return False


def check_system(chat: Chat) -> None:
    """Raise ConfigError if the template has a system prompt that is not the one of its family.

    The family is then only known by the name that the user gives: ReasonFlux-PRM has the tensors of
    Qwen2.5-Math-PRM, but its authors leave the system prompt to the template.
    """
    if chat.family.system is None:
        return
    bos = chat.special_tokens.get("bos_token", "")
    own = chat.render_prompt(_QUESTION).removeprefix(bos)
    try:
        known = chat.render_prompt(with_system(_QUESTION, chat.family)).endswith(own)
    except jinja2.TemplateError as error:
        raise ConfigError(f"the chat template refuses a system prompt: {error}") from error
    if not known:
        raise ConfigError(
            f"the chat template has a system prompt of its own, not {chat.family.system!r}: say --family "
            f"prm-reasonflux to read conversations with it, --family {chat.family.name} to read them with the other"
        )
