"""Input of process models that read a token after each step of a response.

Sources: the model cards of Qwen2.5-Math-PRM and ReasonFlux-PRM, whose steps are paragraphs of the assistant's turn, and
skywork-o1-prm-inference, whose steps are lines after the line of the question. The token is put between the ids of the
steps, so that no text of a step or of a prompt can become one. `step_ends` is for the family without such a token.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from armo_ray.model.families import Family
from armo_ray.model.messages import Messages
from armo_ray.model.positions import STEP_END
from armo_ray.model.steps import read_pattern, with_system
from armo_ray.text import judges, step_ends
from armo_ray.text.conversations import Candidate
from armo_ray.text.rendering import Renderer
from armo_ray.text.tokenized import Ids, Prompt, Tokenized

_THOUGHT = "</think>"


class Tools(NamedTuple):
    """The parts of an Encoder that encoding in steps needs."""

    renderer: Renderer
    max_length: int
    render: Callable[[Sequence[Messages]], list[Prompt]]  # the ids of a prompt that is far too long are None
    encode: Callable[[list[str]], list[Ids]]  # texts without a template, in which nothing is a special token
    may_fit: Callable[[str], bool]


class Response(NamedTuple):
    """The steps of a response, or why it cannot be scored."""

    steps: list[str]
    flags: list[str]
    rejection: tuple[str, str] | None = None


def encode(candidates: Sequence[Candidate], tools: Tools) -> Tokenized:
    """Encode the candidates that have no reject reason yet; the others are returned as rejects."""
    out = Tokenized()
    responses = {i: _checked(candidate, tools) for i, candidate in enumerate(candidates)}
    out.rejects += [(i, *r.rejection) for i, r in responses.items() if r.rejection is not None]
    fit = {i: r for i, r in responses.items() if r.rejection is None}
    prompts = _prompts({i: candidates[i].prompt for i in fit}, tools)
    written = _written([r.steps for r in fit.values()], tools)
    places: dict[int, int] = {}
    for (i, response), ids in zip(fit.items(), written, strict=True):
        prompt = prompts[i]
        size = int(np.count_nonzero(ids != STEP_END))
        if (rejection := _unfit(prompt, size, tools.max_length)) is not None:
            out.rejects.append((i, *rejection))
            continue
        assert prompt.ids is not None, "_unfit passes only encoded prompts"
        place = places.setdefault(id(prompt), len(out.prompts))
        if place == len(out.prompts):
            out.prompts.append(prompt.ids)
        out.group.append(place)
        out.responses.append(ids)
        flagged = prompt.flagged or tools.renderer.has_special(response.steps)
        flags = [*response.flags, *(["special_token_text"] if flagged else [])]
        out.add(i, prompt, (len(prompt.ids), size), flags)
    return out


def conversation(prompt: Messages, response: str, family: Family) -> Messages:
    """The whole conversation, with the text of the token after each step, as the authors' code renders it."""
    step_texts, _ = judges.steps_of(response, family)
    text = "".join(step + family.mark for step in step_texts) if family.mark else "\n\n".join(step_texts)
    return [*with_system(prompt, family), {"role": "assistant", "content": text}]


def _checked(candidate: Candidate, tools: Tools) -> Response:
    response = rejected_or_steps(candidate, tools)
    if response.rejection is not None or tools.renderer.chat.family.text != "lines":
        return response
    return response._replace(rejection=single_question(candidate, tools))


def rejected_or_steps(candidate: Candidate, tools: Tools) -> Response:
    """The steps of a candidate's response, or why it cannot be scored."""
    chat = tools.renderer.chat
    if (rejection := judges.rejected(candidate)) is not None:
        return Response([], [], rejection)
    if not tools.may_fit(candidate.response):
        detail = f"{len(candidate.response)} characters, max_length is {tools.max_length} tokens"
        return Response([], [], ("too_long", detail))
    if _THOUGHT in candidate.response and _THOUGHT in chat.template:
        return Response([], [], ("unsupported_content", "the chat template moves thoughts between the steps"))
    step_texts, flags = judges.steps_of(candidate.response, chat.family)
    if mark := chat.family.step_end.strip():  # which stays at the end of a response
        step_texts = [re.sub(rf"(^|\s){re.escape(mark)}$", "", step).rstrip() for step in step_texts]
    step_texts = list(filter(None, step_texts))
    if not step_texts:
        return Response([], [], ("empty_response", "every step of the response is blank"))
    return Response(step_texts, [*candidate.flags, *flags])


def single_question(candidate: Candidate, tools: Tools) -> tuple[str, str] | None:
    """Reason and detail if a prompt is not one question, or far too long; otherwise None."""
    roles = [message["role"] for message in candidate.prompt]
    if roles != ["user"]:
        return (
            "malformed_row",
            f"this model reads a single question, but the prompt has turns of {', '.join(roles)}",
        )
    if not tools.may_fit(candidate.prompt[0]["content"]):
        characters = len(candidate.prompt[0]["content"])
        return "too_long", f"{characters} characters, max_length is {tools.max_length} tokens"
    return None


def _prompts(messages: dict[int, Messages], tools: Tools) -> dict[int, Prompt]:
    """The prompt of each candidate; the same object for equal ones."""
    if tools.renderer.chat.family.text == "lines":
        return _questions(messages, tools)
    distinct = {str(prompt): prompt for prompt in messages.values()}
    prompts = dict(zip(distinct, tools.render(list(distinct.values())), strict=True))
    if not tools.renderer.chat.family.mark:
        step_ends.cut_headers(prompts.values(), tools.renderer.chat)
    return {i: prompts[str(prompt)] for i, prompt in messages.items()}


def _questions(messages: dict[int, Messages], tools: Tools) -> dict[int, Prompt]:
    """The line of each candidate's question after BOS, without a template; the same object for equal ones."""
    renderer = tools.renderer
    bos = renderer.chat.tokenizer.token_to_id(renderer.chat.special_tokens["bos_token"])
    prompts: dict[str, Prompt] = {}
    for prompt in messages.values():
        question = prompt[0]["content"]
        if question not in prompts:
            (ids,) = tools.encode([question + "\n"])
            line = Prompt(prompt, text=question, flagged=renderer.has_special([question]))
            line.ids = np.concatenate((np.array([bos], np.int32), ids))
            line.id = hashlib.blake2b(line.ids.tobytes(), digest_size=16).hexdigest()
            prompts[question] = line
    return {i: prompts[prompt[0]["content"]] for i, prompt in messages.items()}


def _written(responses: Sequence[list[str]], tools: Tools) -> list[Ids]:
    """The ids of each response, with the token or mark after each step."""
    chat = tools.renderer.chat
    if not chat.family.mark:
        return step_ends.written(responses, chat, tools.encode)
    mark = np.array(read_pattern(chat), np.int32)
    end = np.array(chat.encode(chat.response_end), np.int32)
    texts = [chat.response_start * (not k) + step for steps in responses for k, step in enumerate(steps)]
    ids = iter(tools.encode(texts))
    return [
        np.concatenate([part for _ in steps for part in (next(ids), mark)] + [end]) for steps in responses
    ]


def _unfit(prompt: Prompt, size: int, max_length: int) -> tuple[str, str] | None:
    """Reason and detail if a response of `size` tokens to a prompt cannot be scored, otherwise None."""
    if prompt.error is not None:
        return prompt.error
    if prompt.whole:
        detail = "the chat template renders this prompt in another way once a response follows"
        return "unsupported_content", detail
    if prompt.ids is None:
        return "too_long", f"{len(prompt.text)} characters, max_length is {max_length} tokens"
    if (total := len(prompt.ids) + size) > max_length:
        return "too_long", f"{total} tokens, max_length is {max_length}"
    return None
