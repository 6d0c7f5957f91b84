"""Conversions for rows whose conversations no path can reach: one function per format of a named layout.

Each function takes the values of a layout's column roles and returns them with the usual ones filled in. It raises
Rejected if a row does not have the format.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from armo_ray.text.paths import Rejected, decoded, kind_of

Values = dict[str, Any]


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise Rejected("malformed_row", f"{what} is {kind_of(value)}, expected text")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if isinstance(value, str):
        value = decoded(value, what)
    if not isinstance(value, list):
        raise Rejected("malformed_row", f"{what} is {kind_of(value)}, expected a list")
    return value


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Rejected("malformed_row", f"{what} is {kind_of(value)}, expected an object")
    return value


_EXTRA_ID = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def extra_id_turns(values: Values) -> Values:
    """HelpSteer2's prompts of several turns, separated by <extra_id_1>."""
    prompt = values.get("prompt")
    if not isinstance(prompt, str) or "<extra_id_1>" not in prompt:
        return values
    first, *rest = _EXTRA_ID.split(prompt)
    roles = {"User": "user", "Assistant": "assistant"}
    turns = [
        message(roles[role], said.rstrip("\n")) for role, said in zip(rest[::2], rest[1::2], strict=True)
    ]
    return {**values, "prompt": [message("user", first.rstrip("\n")), *turns]}


def interleaved(values: Values) -> Values:
    """JSON lists of the user's turns and of the replies of each of two models (LMSYS 55k)."""
    questions = _list(values["prompt"], "prompt")
    conversations: Values = {}
    for role in ("first", "second"):
        replies = _list(values[role], role)
        if len(replies) != len(questions):
            raise Rejected(
                "malformed_row",
                f"{len(questions)} turns of the user, but {len(replies)} replies of the {role} model",
            )
        pairs = zip(questions, replies, strict=True)
        conversations[role] = [
            turn for q, a in pairs for turn in (message("user", q), message("assistant", a))
        ]
    return {**values, **conversations, "prompt": None}


_PAIRED = (("input", "output"), ("human", "assistant"))


def turn_pairs(values: Values) -> Values:
    """Objects that each hold a turn of the user and the assistant's reply (Capybara, ms-swift)."""
    turns: list[dict[str, Any]] = []
    for entry in _list(values["messages"], "conversation"):
        pair = _object(entry, "a turn")
        names = next((names for names in _PAIRED if set(names) <= pair.keys()), None)
        if names is None:
            raise Rejected("malformed_row", f"a turn has {', '.join(pair)}, expected input and output")
        turns += [message("user", pair[names[0]]), message("assistant", pair[names[1]])]
    return {**values, "messages": turns}


_OASST_ROLES = {"prompter": "user", "assistant": "assistant"}


def tree(values: Values) -> Values:
    """Every assistant turn of an Open-Assistant tree, each with the conversation that leads to it."""
    conversations = list(_paths(_object(values["responses"], "prompt"), []))
    if not conversations:
        raise Rejected("empty_response", "the tree has no assistant turn")
    return {**values, "responses": conversations}


def _paths(node: Mapping[str, Any], before: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    waiting = [(node, before)]
    while waiting:
        node, before = waiting.pop(0)
        role = str(node.get("role"))
        path = [*before, message(_OASST_ROLES.get(role, role), node.get("text"))]
        if role == "assistant":
            yield path
        waiting += [(_object(reply, "a reply"), path) for reply in node.get("replies") or []]


_GLAIVE = re.compile(r"(?:^|\n+)(USER|ASSISTANT|FUNCTION RESPONSE): ?")
_GLAIVE_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}


def glaive(values: Values) -> Values:
    """Glaive's chats: one text with USER:, ASSISTANT: or FUNCTION RESPONSE: before each turn."""
    before, *rest = _GLAIVE.split(_text(values["messages"], "chat"))
    if before.strip() or not rest:
        raise Rejected("malformed_row", "chat does not begin with USER:")
    said = (text.strip().removesuffix("<|endoftext|>").strip() for text in rest[1::2])
    turns = [message(_GLAIVE_ROLES[name], text) for name, text in zip(rest[::2], said, strict=True)]
    system = values.get("system")
    if isinstance(system, str):
        system = system.strip().removeprefix("SYSTEM:").strip()
    return {**values, "messages": turns, "system": system}


_GUANACO = re.compile(r"### (Human|Assistant): ?")
_GUANACO_ROLES = {"Human": "user", "Assistant": "assistant"}


def guanaco(values: Values) -> Values:
    """One text with ### Human: or ### Assistant: before each turn."""
    before, *rest = _GUANACO.split(_text(values["messages"], "text"))
    if before.strip() or not rest:
        raise Rejected("malformed_row", "text does not begin with ### Human:")
    turns = zip(rest[::2], rest[1::2], strict=True)
    return {**values, "messages": [message(_GUANACO_ROLES[name], said.strip()) for name, said in turns]}


def tldr(values: Values) -> Values:
    """A post or article to summarize, with the prompt of TRL's script."""
    info = _object(values["prompt"], "info")
    body = info.get("post") or info.get("article")
    text = _text(body, "info.post and info.article").replace("\n\n", "\n")
    title = info.get("title") or ""
    if info.get("post"):
        prompt = f"SUBREDDIT: r/{info.get('subreddit')}\n\nTITLE: {title}\n\nPOST: {text}\n\nTL;DR:"
    else:
        prompt = f"TITLE: {title}\n\n{text}\n\nTL;DR:"
    return {**values, "prompt": prompt}


def swift_rejected(values: Values) -> Values:
    """Messages, and a rejected response that replaces their last turn (ms-swift)."""
    messages, other = _list(values["chosen"], "messages"), values["rejected"]
    if other is None:
        raise Rejected("empty_response", "rejected_response is null")
    turns = other if isinstance(other, list) else [message("assistant", other)]
    return {**values, "rejected": [*messages[:-1], *turns]}


def ranked(values: Values) -> Values:
    """Responses with ranks; those with the lowest rank are chosen (NeMo-RL)."""
    entries = [_object(entry, "a completion") for entry in _list(values["chosen"], "completions")]
    ranks: list[Any] = [entry.get("rank") for entry in entries]
    if len(entries) < 2 or not all(isinstance(rank, int | float) for rank in ranks):
        raise Rejected("malformed_row", f"the ranks are {ranks!r:.100}, expected two or more numbers")
    best = min(ranks)
    said = [entry.get("completion") for entry in entries]
    chosen = [i for i, rank in enumerate(ranks) if rank == best]
    others = [i for i, rank in enumerate(ranks) if rank != best]
    if not others:
        return {**values, "chosen": [], "rejected": [], "tied": said}
    sides = {"chosen": [said[i] for i in chosen], "rejected": [said[i] for i in others]}
    return {**values, **sides, "places": (*chosen, *others)}


_CHATML = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>\n?|\Z)", re.DOTALL)
_LLAMA3 = re.compile(
    r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n(.*?)(?:<\|eot_id\|>|<\|end_of_text\|>|\Z)", re.DOTALL
)
_BARE = re.compile(r"(?:^|\n)(system|user|assistant)\n")
_MARKS = (
    "<|im_start|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "[INST]",
    "<|user|>",
    "<\uff5cUser\uff5c>",
)
_ENDS = re.compile(r"(?:<\|im_end\|>|<\|eot_id\|>|<\|end_of_text\|>|<\|endoftext\|>)\s*\Z")


def rendered(values: Values) -> Values:
    """A prompt rendered by ChatML's or Llama-3's chat template, with or without special tokens."""
    prompt = values.get("prompt")
    plain: Values = {"prompt": _unrendered(prompt) if isinstance(prompt, str) else prompt}
    plain |= {role: _without_end(values[role]) for role in ("response", "responses") if role in values}
    return {**values, **plain}


def _without_end(value: Any) -> Any:
    """A response, or a list of them, without the token that ends a turn."""
    if isinstance(value, list):
        return list(map(_without_end, value))
    if not isinstance(value, str):
        return value
    text = _ENDS.sub("", value)
    if mark := next((mark for mark in _MARKS if mark in text), None):
        raise Rejected("malformed_row", f"the response contains turns of a chat template: {mark}")
    return text


def _unrendered(text: str) -> Any:
    for pattern in (_CHATML, _LLAMA3):
        if turns := [message(role, said.strip()) for role, said in pattern.findall(text)]:
            left = pattern.sub("", text).replace("<|begin_of_text|>", "").strip()
            if left:
                raise Rejected("malformed_row", f"the prompt has text outside its turns: {left!r:.80}")
            return _asked(turns)
    if mark := next((mark for mark in _MARKS if mark in text), None):
        raise Rejected(
            "malformed_row", f"the prompt was rendered by an unknown chat template: it contains {mark}"
        )
    before, *rest = _BARE.split(f"{text.rstrip()}\n" if text.rstrip().endswith("assistant") else text)
    if before or not rest:
        return text
    turns = [message(role, said.strip()) for role, said in zip(rest[::2], rest[1::2], strict=True)]
    roles = [turn["role"] for turn in turns if turn["role"] != "system"]
    if roles[::2] != ["user"] * len(roles[::2]) or roles[1::2] != ["assistant"] * len(roles[1::2]):
        raise Rejected(
            "malformed_row",
            f"the turns of the prompt cannot be separated: their roles are {', '.join(roles)}",
        )
    return _asked(turns)


def _asked(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages before the response, without a trailing header for it."""
    return turns[:-1] if turns[-1] == message("assistant", "") else turns


def prm800k(values: Values) -> Values:
    """The chosen steps, and every path that ends in another rated step instead, as in TRL's script."""
    responses: list[list[str]] = []
    path: list[str] = []
    for step in _list(values["steps"], "label.steps"):
        completions, chosen = step.get("completions") or [], step.get("chosen_completion")
        responses += [[*path, c.get("text")] for k, c in enumerate(completions) if k != chosen]
        if chosen is not None:
            path = [*path, completions[chosen].get("text")]
        elif step.get("human_completion"):
            human = step["human_completion"]
            path = [*path, human if isinstance(human, str) else human.get("text")]
        else:
            break
    return {**values, "steps": [*responses, path] if path else responses}


_SHEPHERD = "ки"
_STEP = re.compile(r"step 1\s*:", re.IGNORECASE)


def math_shepherd(values: Values) -> Values:
    """A question and the steps in one text, with a mark after each step."""
    text = _text(values["prompt"], "input")
    first = _STEP.search(text)
    if first is None:
        raise Rejected("malformed_row", "input has no Step 1:")
    steps = [step.strip() for step in text[first.start() :].split(_SHEPHERD)]
    return {**values, "prompt": text[: first.start()].strip(), "steps": [step for step in steps if step]}


def rlhflow_prm(values: Values) -> Values:
    """A question with the first step, and each further step, in user turns; the assistant's turns are verdicts."""
    turns = [_object(turn, "a turn") for turn in _list(values["prompt"], "conversations")]
    said = [_text(turn.get("content", turn.get("value")), "a turn") for turn in turns]
    if len(said) < 2 or any(verdict not in ("+", "-") for verdict in said[1::2]):
        raise Rejected("malformed_row", "the assistant's turns are not all + or -")
    first = _STEP.search(said[0])
    if first is None:
        raise Rejected("malformed_row", "the first turn has no Step 1:")
    steps = [said[0][first.start() :], *said[2::2]]
    return {**values, "prompt": said[0][: first.start()].strip(), "steps": steps}


SHAPES: dict[str, Callable[[Values], Values]] = {
    function.__name__: function
    for function in (
        *(extra_id_turns, interleaved, turn_pairs, tree, glaive, guanaco, tldr, swift_rejected, ranked),
        *(rendered, prm800k, math_shepherd, rlhflow_prm),
    )
}
