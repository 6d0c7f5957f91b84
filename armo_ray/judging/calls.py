"""The requests that judge the candidates of a row."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from armo_ray.judging.specification import LETTERS, Judge
from armo_ray.model.messages import Messages
from armo_ray.text.conversations import Candidate
from armo_ray.text.judges import MAX_OPPONENTS
from armo_ray.text.paths import Rejected

Text = dict[str, str]  # role and content


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    candidates: their positions among the candidates of the row, in the order in which the judge sees them.
    order: 0 as given, 1 swapped (pair), or any other order (list).
    options: the further fields of the request.
    """

    candidates: tuple[int, ...]
    order: int
    sample: int
    messages: tuple[Text, ...]
    options: Mapping[str, Any]


def calls_of(
    judge: Judge, key: str, candidates: Sequence[Candidate], columns: Mapping[str, Any]
) -> list[Call]:
    """The calls that judge a row. `key` identifies the row; the same row has the same calls in every run.

    A candidate that has no other response to its own prompt is in no call of a judge that compares; if that is true
    of all, the row is rejected. Raises Rejected(reason, detail) if the row cannot be judged.
    """
    shown = [_shown(judge, candidate) for candidate in candidates]
    columns = {name: _column_text(columns, name) for name in judge.columns}
    calls = []
    for asked, order in _contests(judge, key, shown):
        messages = _messages(judge, [shown[i] for i in asked], columns)
        for sample in range(judge.samples):
            options = dict(judge.sampling)
            if judge.is_seeded:
                options["seed"] = _hash(key, *asked, order, sample) >> 33  # 31 bits
            calls.append(Call(asked, order, sample, messages, options))
    return calls


@dataclass(frozen=True, slots=True)
class _Shown:
    """A candidate as the judge sees it."""

    prompt: Messages
    response: str


def _shown(judge: Judge, candidate: Candidate) -> _Shown:
    prompt, [response] = candidate.shown()
    if judge.multi_turn == "refuse" and [message["role"] for message in prompt] != ["user"]:
        roles = ", ".join(message["role"] for message in prompt)
        detail = f"judge {judge.name} was made for a single question, but the prompt has the turns {roles}"
        raise Rejected("unsupported_content", detail)
    return _Shown(prompt, response["content"])


def _column_text(columns: Mapping[str, Any], name: str) -> str:
    value = columns.get(name)
    if value is None or value == "":
        raise Rejected(
            "malformed_row",
            f"column {name}, which the judge's messages show, is {'absent or null' if value is None else 'empty'}",
        )
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _contests(judge: Judge, key: str, shown: Sequence[_Shown]) -> Iterator[tuple[tuple[int, ...], int]]:
    """The candidates of each call in the order in which they are shown, and whether that is the given order."""
    if judge.unit == "one":
        yield from (((i,), 0) for i in range(len(shown)))
        return
    sets = list(_sets(judge, key, shown))
    if not sets:
        raise Rejected("malformed_row", "this judge compares responses to one prompt, but there is only one")
    for given in sets:
        if judge.orders == "hash":
            swapped = _shuffled(key, given)
            yield swapped, int(swapped != given)
        else:
            yield given, 0
        if judge.orders == "both":
            yield given[::-1], 1


def _sets(judge: Judge, key: str, shown: Sequence[_Shown]) -> Iterator[tuple[int, ...]]:
    """Those that are compared with each other."""
    by_prompt: dict[str, list[int]] = {}
    for i, each in enumerate(shown):
        by_prompt.setdefault(json.dumps(each.prompt, sort_keys=True), []).append(i)
    for group in by_prompt.values():
        if judge.unit == "list":
            _check_list(judge, group)
        if len(group) > 1:
            yield from [tuple(group)] if judge.unit == "list" else _pairs(key, group)


def _check_list(judge: Judge, group: Sequence[int]) -> None:
    if judge.size is not None and len(group) != judge.size:
        raise Rejected(
            "malformed_row", f"judge {judge.name} compares {judge.size} responses, but there are {len(group)}"
        )
    if len(group) > judge.longest_list:
        raise Rejected(
            "too_long", f"{len(group)} responses, longest_list of judge {judge.name} is {judge.longest_list}"
        )


def _pairs(key: str, group: Sequence[int]) -> list[tuple[int, ...]]:
    """All pairs, or those of neighbors in a ring if there are many, as for models that compare."""
    if len(group) <= MAX_OPPONENTS + 1:
        return list(combinations(group, 2))
    ring = sorted(group, key=lambda i: _hash(key, i))
    return [
        (min(a, b), max(a, b))
        for step in range(1, MAX_OPPONENTS // 2 + 1)
        for a, b in zip(ring, ring[step:] + ring[:step], strict=True)
    ]


def _shuffled(key: str, given: tuple[int, ...]) -> tuple[int, ...]:
    if len(given) == 2:
        return given[::-1] if _hash(key, *given) % 2 else given
    return tuple(sorted(given, key=lambda i: _hash(key, *given, "order", i)))


def _hash(key: str, *parts: int | str) -> int:
    """64 bits."""
    text = json.dumps([key, *parts], ensure_ascii=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _messages(judge: Judge, asked: Sequence[_Shown], columns: Mapping[str, str]) -> tuple[Text, ...]:
    prompt = asked[0].prompt
    values = {f"column:{name}": text for name, text in columns.items()}
    values["rubric"] = judge.rubric if judge.rubric is not None else columns.get("rubric", "")
    values["prompt"] = conversation_text(prompt)
    values["response"] = asked[0].response
    values |= {LETTERS[k]: each.response for k, each in enumerate(asked[: len(LETTERS)])}
    values["list"] = _listed(judge, asked) if "list" in judge.placeholders else ""
    out: list[Text] = []
    for message in judge.messages:
        if message.role == "conversation":
            out += [{"role": turn["role"], "content": turn["content"]} for turn in prompt]
        else:
            out.append({"role": message.role, "content": message.template.fill(values.__getitem__)})
    return tuple(out)


def _listed(judge: Judge, asked: Sequence[_Shown]) -> str:
    entries = []
    for k, each in enumerate(asked):
        values = {"number": str(k + 1), "letter": _letter(k), "response": each.response}
        entries.append(judge.item.fill(values.__getitem__))
    return "".join(entries)


def _letter(k: int) -> str:
    """A to Z, then AA, AB, ..."""
    return ("" if k < 26 else _letter(k // 26 - 1)) + LETTERS[k % 26].upper()


def conversation_text(prompt: Messages) -> str:
    """A single question as it is, any other prompt with the role before each turn."""
    if [message["role"] for message in prompt] == ["user"]:
        return str(prompt[0]["content"])
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)
