"""Reading of a judge file. Whatever it says wrongly is told before any work: the file, the key, and what to write."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, get_args

from armo_ray.judging.authors import Origin, authors_text
from armo_ray.judging.rules import parse_of, reward_names_of
from armo_ray.judging.specification import (
    LETTERS,
    Aggregate,
    Judge,
    Message,
    Orders,
    Parse,
    Unit,
)
from armo_ray.judging.table import Table, is_number
from armo_ray.judging.template import Template, format_template, template_of

KEYS = (
    *("description", "unit", "scale", "orders", "samples", "aggregate", "strip", "multi_turn", "quorum"),
    *("rubric", "item", "longest_list", "weights", "source", "license", "origin"),
    *("messages", "parse", "sampling"),
)
SAMPLING: dict[str, tuple[type, ...]] = {
    "temperature": (int, float),
    "top_p": (int, float),
    "min_p": (int, float),
    "top_k": (int,),
    "max_tokens": (int,),
    "max_completion_tokens": (int,),
    "frequency_penalty": (int, float),
    "presence_penalty": (int, float),
    "repetition_penalty": (int, float),
    "reasoning_effort": (str,),
    "stop": (str, list),
    "top_logprobs": (int,),
    "response_format": (dict,),
    "chat_template_kwargs": (dict,),
    "seed": (bool,),
}
CONVERSATION = "conversation"
ITEM = "[Response {number}]\n{response}\n\n"
_SHOWN = {"one": ("response",), "pair": ("a", "b"), "list": ("list",)}


def judge_of(entries: Mapping[str, Any], name: str) -> Judge:
    """The judge that the entries of a TOML file describe. Raises ValueError, or ConfigError for authors' texts."""
    if "judge" not in entries or len(entries) > 1:
        other = next((key for key in entries if key != "judge"), None)
        raise ValueError("expected one table [judge]" + (f", found {other}" if other else ""))
    table = Table(entries["judge"], "judge", KEYS)
    unit: Unit = table.one_of("unit", get_args(Unit))
    origin = _origin(table)
    messages = _messages(table, origin)
    _check_placeholders(unit, messages)
    size = _size(messages)
    parse = parse_of(table, unit, size)
    sampling, is_seeded = _sampling(table, parse)
    names = reward_names_of(unit, parse, table.one_of("orders", get_args(Orders), "both"))
    judge = Judge(
        name=name,
        unit=unit,
        messages=messages,
        parse=parse,
        scale=_scale(table, unit, parse),
        orders=table.one_of("orders", get_args(Orders), "both"),
        samples=table.whole("samples", 1, 1000, 1),
        aggregate=table.one_of("aggregate", get_args(Aggregate), "mean"),
        strip=table.one_of("strip", ("think", "none"), "none"),
        multi_turn=table.one_of("multi_turn", ("turns", "refuse"), "turns"),
        quorum=_quorum(table),
        rubric=table.text("rubric") if "rubric" in table else None,
        item=template_of(table.text("item", ITEM)),
        longest_list=table.whole("longest_list", 2, 1000, 16),
        sampling=sampling,
        is_seeded=is_seeded,
        reward_names=names,
        weights=_weights(table, names),
        description=table.text("description", "a judge of the user's own"),
        source=str(origin) if origin else table.text("source", "-").strip("-"),
        license=origin.license if origin else table.text("license", "-").strip("-"),
    )
    _check_whole(table, judge)
    return judge


def _origin(table: Table) -> Origin | None:
    if "origin" not in table:
        return None
    own = Table(table.entries["origin"], "judge.origin", ("repository", "commit", "path", "license"))
    repository = own.text("repository")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise own.wrong("repository", "OWNER/NAME of a GitHub repository")
    return Origin(repository, own.text("commit"), own.text("path"), own.text("license"))


def _messages(table: Table, origin: Origin | None) -> tuple[Message, ...]:
    found = table.entries.get("messages")
    if not isinstance(found, list) or not found:
        raise table.wrong("messages", "one [[judge.messages]] or more, each with role and text")
    return tuple(_message(entries, k, origin) for k, entries in enumerate(found, 1))


def _message(entries: Any, k: int, origin: Origin | None) -> Message:
    own = Table(entries, f"judge.messages {k}", ("role", "text", "authors", "sha256", "fields"))
    role = own.text("role")
    if role == CONVERSATION:
        if len(own.entries) > 1:
            raise own.wrong(
                "role", f"nothing else where the role is {CONVERSATION}: the prompt's messages stand there"
            )
        return Message(role, Template(()))
    if "authors" not in own:
        return Message(role, template_of(own.text("text")))
    if origin is None or "text" in own:
        raise own.wrong("authors", "a variable in the file of [judge.origin], and no text")
    text = authors_text(origin, own.text("authors"), own.text("sha256"))
    if "fields" not in own:
        return Message(role, Template(((False, text),)))  # as it is: not a text for str.format
    fields = own.table(
        "fields", lambda x: isinstance(x, str), "the templates that stand for the fields of the authors' text"
    )
    try:
        return Message(role, format_template(text, fields))
    except ValueError as error:
        raise own.wrong("fields", f"the fields of the authors' text: {error}") from None


def _size(messages: tuple[Message, ...]) -> int | None:
    letters = {name for message in messages for name in message.template.names if name in LETTERS}
    return len(letters) or None


def _check_placeholders(unit: Unit, messages: tuple[Message, ...]) -> None:
    """Every placeholder is known and fits the unit, and the responses are shown."""
    names = list(dict.fromkeys(name for message in messages for name in message.template.names))
    letters = sorted(name for name in names if len(name) == 1 and name in LETTERS)
    shown = tuple(letters) if unit == "list" and letters else _SHOWN[unit]
    known = ("prompt", "rubric", "column:NAME", *shown)
    for name in names:
        if name in known or name.startswith("column:"):
            continue
        if name in ("response", "list", *LETTERS):
            here = f"a judge of unit {unit} shows responses by {', '.join(f'{{{n}}}' for n in _SHOWN[unit])}"
            raise ValueError(f"[judge.messages] {{{name}}}: {here}")
        close = difflib.get_close_matches(name, known, 1)
        hint = (
            f"did you mean {{{close[0]}}}?" if close else f"known are {', '.join(f'{{{n}}}' for n in known)}"
        )
        raise ValueError(
            f"[judge.messages] {{{name}}}: unknown placeholder; {hint} Write {{{{{name}}}}} for the text itself"
        )
    if missing := [name for name in shown if name not in names]:
        raise ValueError(f"[judge.messages] {{{missing[0]}}} is missing: a judge of unit {unit} must show it")
    if unit == "list" and letters and (len(letters) < 2 or letters != list(LETTERS[: len(letters)])):
        raise ValueError(
            f"[judge.messages] the responses are {letters}: expected {{a}}, {{b}} and so on, without gaps"
        )
    last = messages[-1]
    if last.role == "assistant" and last.template.names:
        raise ValueError(
            f"[judge.messages] {{{last.template.names[0]}}}: the last message begins the judge's own reply, "
            f"where no text of a row may stand"
        )


def _scale(table: Table, unit: Unit, parse: Parse) -> tuple[float, float] | None:
    expected = "the lowest and the highest rating, such as [1, 5]"
    if "scale" in table:
        fits = lambda x: isinstance(x, list) and len(x) == 2 and all(map(is_number, x)) and x[0] < x[1]  # noqa: E731
        low, high = table.read("scale", fits, expected)
        if (
            parse.values
            and unit == "one"
            and not all(low <= value <= high for value in parse.values.values())
        ):
            raise table.wrong("scale", "a scale that holds all of [judge.parse] values")
        return float(low), float(high)
    if unit == "one" and parse.values:
        return min(parse.values.values()), max(parse.values.values())
    if unit == "one" or (unit == "list" and not parse.values):
        raise table.wrong("scale", expected)
    return None


def _quorum(table: Table) -> float:
    fits = lambda x: is_number(x) and 0 < x <= 1  # noqa: E731
    return float(table.read("quorum", fits, "a share above 0 and up to 1", 1.0))


def _weights(table: Table, names: tuple[str, ...]) -> tuple[float, ...]:
    weights = table.table("weights", is_number, "numbers by the names of rewards")
    if not weights:
        return (1 / len(names),) * len(names)
    if set(weights) != set(names):
        raise table.wrong("weights", f"a weight for each of {', '.join(names)}")
    return tuple(float(weights[name]) for name in names)


def _sampling(table: Table, parse: Parse) -> tuple[dict[str, Any], bool]:
    own = Table(table.entries.get("sampling", {}), "judge.sampling", tuple(SAMPLING))
    found: dict[str, Any] = {"temperature": 0}
    for key, kinds in SAMPLING.items():
        if key in own:
            fits = lambda x, kinds=kinds: type(x) in kinds  # noqa: E731
            found[key] = own.read(key, fits, " or ".join(kind.__name__ for kind in kinds))
    is_seeded = bool(found.pop("seed", True))
    if "max_completion_tokens" not in found:
        found.setdefault("max_tokens", 2048)
    for key in ("max_tokens", "max_completion_tokens"):
        if found.get(key, 1) < 1:
            raise own.wrong(key, "1 or more")
    if not 0 <= found["temperature"] <= 2:
        raise own.wrong("temperature", "a number from 0 to 2")
    if parse.kind == "tokens":
        found = {**found, "logprobs": True, "top_logprobs": found.get("top_logprobs", 20)}
    elif "top_logprobs" in own:
        raise own.wrong("top_logprobs", 'nothing, or [judge.parse] kind = "tokens"')
    return found, is_seeded


def _check_whole(table: Table, judge: Judge) -> None:
    """What no single key can say."""
    if judge.samples > 1 and judge.sampling["temperature"] == 0:
        raise table.wrong(
            "samples", "1, or a [judge.sampling] temperature above 0: at 0 all samples are the same"
        )
    if judge.aggregate == "sum" and not judge.is_rating:
        raise table.wrong("aggregate", "mean or majority: a share of wins has no sum")
    if judge.unit == "one" and "orders" in table:
        raise table.wrong("orders", "nothing: a single response has no order")
    if judge.rubric is not None and "rubric" not in judge.placeholders:
        raise table.wrong("rubric", "{rubric} in a message, which shows it")
    if judge.unit != "list" and ("item" in table or "longest_list" in table):
        raise table.wrong("item" if "item" in table else "longest_list", 'unit = "list"')
    if judge.unit == "list" and set(judge.item.names) - {"number", "letter", "response"}:
        raise table.wrong("item", "{number} or {letter}, and {response}")
    if judge.unit == "list" and "response" not in judge.item.names:
        raise table.wrong("item", "{response}")
