"""Reading of a verdict from the text of a reply."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from armo_ray.judging.specification import THOUGHT_END, Judge, Parse

Numbers = tuple[float, ...]
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


class Unparsable(Exception):  # noqa: N818 - a finding about a reply, not an error
    """A reply has no verdict, or more than one; args are (detail,)."""


def visible(judge: Judge, text: str) -> str:
    """The text that may vote: without the judge's own thinking, if the judge is told to strip it."""
    if judge.strip != "think":
        return text
    _, end, after = text.rpartition(THOUGHT_END)
    if end:
        return after
    return after if "<think>" not in after else after[: after.index("<think>")]


def written(judge: Judge, text: str, count: int) -> Numbers:
    """The verdict that a text spells out.

    For a single response, its rewards. For a pair or a list, one number for each of the `count` responses in the order
    shown: 1 for the winner, 0.5 for a tie, 0 for a loser, or ratings. Raises Unparsable.
    """
    rule = judge.parse
    text = visible(judge, text)
    text = text[-rule.tail :] if rule.tail else text
    read = _json if rule.kind == "json" else _matched
    found = list(read(judge, text, count))
    if not found:
        raise Unparsable(f"no verdict in the reply, which ends with {text[-60:].strip()!r}")
    if rule.where == "only" and len(set(found)) > 1:
        raise Unparsable(f"{len(set(found))} different verdicts in the reply")
    verdict = found[-1] if rule.where in ("only", "last") else found[0]
    if rule.where == "priority":
        ranked = [shares(judge, value, count) for value in rule.values.values()]
        verdict = min(found, key=lambda each: ranked.index(each) if each in ranked else len(ranked))
    if isinstance(verdict, str):
        raise Unparsable(verdict)
    return verdict


# Each match is a verdict, or what is wrong with it: a bad verdict beside a good one is a different verdict.
Found = Iterator[Numbers | str]


def _matched(judge: Judge, text: str, count: int) -> Found:
    rule = judge.parse
    compiled = re.compile(rule.pattern)
    for match in compiled.finditer(text):
        groups = [group for group in match.groups() if group is not None]
        if rule.kind == "choice":
            yield _meaning(judge, groups[0] if groups else "", count, bool(compiled.flags & re.IGNORECASE))
            continue
        if rule.kind == "numbers" and judge.unit != "one":
            groups = [number for group in groups for number in _NUMBER.findall(group)]
        expected = 1 if rule.kind == "number" else len(judge.reward_names) if judge.unit == "one" else count
        yield _numbers(judge, groups[:1] if rule.kind == "number" else groups, expected)


def _meaning(judge: Judge, text: str, count: int, ignores_case: bool = False) -> Numbers | str:
    """What a text means for each response in the order shown."""
    values = judge.parse.values
    text = text.strip()
    if text not in values and ignores_case:
        text = next((known for known in values if known.lower() == text.lower()), text)
    if text not in values:
        return f"the verdict is {text!r:.60}, expected one of {', '.join(values)}"
    return shares(judge, values[text], count)


def shares(judge: Judge, value: float, count: int) -> Numbers | str:
    """A single response's rating, or what each response has won: `value` is of the first (pair), or a place (list)."""
    if judge.unit == "one":
        return (value,)
    if judge.unit == "pair":
        return value, 1 - value
    if value >= count:
        return f"the verdict is response {int(value) + 1} of {count}"
    return tuple(float(k == value) for k in range(count))


def _numbers(judge: Judge, found: Sequence[Any], expected: int) -> Numbers | str:
    """Numbers on the judge's scale; of a pair, who has the higher one."""
    if len(found) != expected:
        return f"{len(found)} numbers, expected {expected}"
    numbers = [_number(value) for value in found]
    for value, number in zip(found, numbers, strict=True):
        if number is None:
            return f"{value!r:.60} is not a number"
        if judge.scale is not None and not judge.scale[0] <= number <= judge.scale[1]:
            return f"{number:g} is outside of the scale {judge.scale[0]:g} to {judge.scale[1]:g}"
    values = tuple(number for number in numbers if number is not None)
    return _compared(*values) if judge.unit == "pair" else values


def _compared(first: float, second: float) -> Numbers:
    share = 0.5 if first == second else float(first > second)
    return share, 1 - share


def _number(value: Any) -> float | None:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _json(judge: Judge, text: str, count: int) -> Found:
    rule = judge.parse
    for entries in _objects(text):
        entries = entries.get(rule.within, entries) if rule.within else entries
        if not isinstance(entries, dict) or not any(key in entries for key in rule.keys):
            continue
        if missing := [key for key in rule.keys if key not in entries]:
            yield f"the JSON object has no {missing[0]}"
        elif rule.values:
            yield _meaning(judge, str(entries[rule.keys[0]]), count)
        elif judge.unit == "list":
            ratings = entries[rule.keys[0]]
            yield _numbers(judge, ratings if isinstance(ratings, list) else [ratings], count)
        else:
            numbers = _numbers(judge, [entries[key] for key in rule.keys], len(rule.keys))
            yield _untied(rule, numbers, entries)


def _untied(rule: Parse, numbers: Numbers | str, entries: Mapping[str, Any]) -> Numbers | str:
    """A tie of two scores as the number that breaks ties decides it."""
    if not rule.tie_break or numbers != (0.5, 0.5):
        return numbers
    number = _number(entries.get(rule.tie_break))
    if number is None:
        return f"equal scores, and {rule.tie_break} is {entries.get(rule.tie_break)!r:.60}"
    return _compared(rule.middle, number)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, without those inside of others."""
    decoder = json.JSONDecoder(parse_constant=_refuse)
    at = text.find("{")
    while at >= 0:
        try:
            found, end = decoder.raw_decode(text, at)
            yield found
        except (ValueError, RecursionError):
            end = at + 1
        at = text.find("{", end)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def likely_value(
    judge: Judge, places: Sequence[Mapping[str, float]], generated: Sequence[str]
) -> tuple[float, float]:
    """The expected value over the label tokens at the place of the verdict, and the probability that they hold.

    places: probabilities by token, for every generated token that may vote. The place is the first or last generated
    label; else the first place, if labels are among its tokens. Raises Unparsable.
    """
    values = judge.parse.values
    own = [k for k, token in enumerate(generated) if token.strip() in values]
    at = own[0 if judge.parse.where == "first" else -1] if own else 0
    if not places:
        raise Unparsable("the reply has no log-probabilities; the endpoint must return logprobs")
    held: dict[str, float] = {}
    for token, probability in places[at].items():
        if (label := token.strip()) in values:
            held[label] = held.get(label, 0.0) + probability
    mass = sum(held.values())
    if not mass > 0:
        raise Unparsable(f"none of {', '.join(values)} is among the returned tokens")
    return sum(values[label] * probability for label, probability in held.items()) / mass, min(mass, 1.0)
