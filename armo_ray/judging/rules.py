"""The table [judge.parse]: how a verdict is read from a reply."""

import re
from collections.abc import Mapping
from typing import Any, get_args

from armo_ray.judging.specification import PAIR_VALUES, Kind, Orders, Parse, Unit, Where
from armo_ray.judging.table import Table, is_number

_KEYS = ("kind", "pattern", "values", "keys", "where", "tail", "tie_break", "middle", "within")
_NAME = re.compile(r"[A-Za-z_]\w*")
_ALTERNATIVES = re.compile(r"\((?:\?P<\w+>)?([\w ]+(?:\|[\w ]+)+)\)")
_TAKES: dict[str, tuple[str, ...]] = {
    "choice": ("pattern", "values", "where", "tail"),
    "number": ("pattern", "where", "tail"),
    "numbers": ("pattern", "where", "tail"),
    "json": ("keys", "values", "where", "tail", "tie_break", "middle", "within"),
    "tokens": ("values", "where"),
}


def parse_of(judge: Table, unit: Unit, size: int | None) -> Parse:
    """The rule of a judge. Raises ValueError. size: the number of responses in a list, if the messages fix it."""
    table = Table(judge.entries.get("parse", {}), "judge.parse", _KEYS)
    kind: Kind = table.one_of("kind", get_args(Kind))
    for key in table.entries:
        if key != "kind" and key not in _TAKES[kind]:
            raise ValueError(f"[judge.parse] {key}: kind {kind} has only {', '.join(_TAKES[kind])}")
    if kind == "number" and unit != "one":
        raise table.wrong(
            "kind", f"choice, numbers, json or tokens for unit {unit}: one number is of one response"
        )
    if kind == "tokens" and unit == "list":
        raise table.wrong("kind", "choice, numbers or json for unit list")
    pattern = _pattern(table, kind, unit) if "pattern" in _TAKES[kind] else ""
    values = _values(table, kind, unit, size)
    if kind == "choice":
        _check_alternatives(table, pattern, values)
    keys = _keys(table, unit, values) if kind == "json" else ()
    where: Where = table.one_of("where", get_args(Where), "first" if kind == "tokens" else "only")
    if where == "priority" and not values:
        raise table.wrong("where", "only, last or first: numbers have no priority")
    if kind == "tokens" and where not in ("first", "last"):
        raise table.wrong("where", "first or last: every token of the reply has a place of its own")
    return Parse(
        kind=kind,
        pattern=pattern,
        values=values,
        keys=keys,
        where=where,
        tail=table.whole("tail", 0, 1_000_000, 0),
        **_tie_break(table, unit, keys),
        within=table.text("within") if "within" in table else "",
    )


def reward_names_of(unit: Unit, parse: Parse, orders: Orders) -> tuple[str, ...]:
    """The names of a candidate's rewards."""
    if unit == "pair":
        return ("win_rate_first", "win_rate_second") if orders == "both" else ("win_rate",)
    if unit == "list":
        return ("win_rate",) if parse.values else ("rating",)
    if parse.kind == "numbers":
        return tuple(re.compile(parse.pattern).groupindex)
    return parse.keys if parse.kind == "json" and not parse.values else ("rating",)


def _pattern(table: Table, kind: Kind, unit: Unit) -> str:
    text = table.text("pattern")
    try:
        compiled = re.compile(text)
    except re.error as error:
        raise table.wrong("pattern", f"a regular expression: {error}") from None
    if compiled.groups == 0:
        raise table.wrong("pattern", "a group in parentheses around the verdict")
    if kind == "numbers" and unit == "one" and len(compiled.groupindex) != compiled.groups:
        raise table.wrong("pattern", "a named group for every reward, such as (?P<accuracy>\\d+)")
    if kind == "numbers" and unit == "pair" and compiled.groups > 2:
        raise table.wrong("pattern", "one group with both numbers, or two groups")
    if kind == "numbers" and unit == "list" and compiled.groups != 1:
        raise table.wrong("pattern", "one group that holds the numbers of all responses")
    return text


def _values(table: Table, kind: Kind, unit: Unit, size: int | None) -> dict[str, float]:
    if "values" not in _TAKES[kind] or (kind == "json" and "values" not in table):
        return {}
    if unit == "pair":
        found = table.table("values", lambda x: x in PAIR_VALUES, "first, second or tie for each verdict")
        if not {"first", "second"} <= set(found.values()):
            raise table.wrong("values", "a verdict for first and one for second")
        return {text: PAIR_VALUES[value] for text, value in found.items()}
    if unit == "list":
        found = table.table(
            "values", lambda x: type(x) is int and x >= 1, "the place of the winner, from 1, for each verdict"
        )
        places = sorted(set(found.values()))
        if len(places) < 2 or places != list(range(1, (size or len(places)) + 1)):
            raise table.wrong(
                "values", f"a verdict for each of the places 1 to {size or max(len(places), 2)}"
            )
        return {text: float(value - 1) for text, value in found.items()}
    found = table.table("values", is_number, "a number for each verdict")
    if len(set(found.values())) < 2:
        raise table.wrong(
            "values", "two verdicts or more, with different numbers, such as { Yes = 1, No = 0 }"
        )
    return {text: float(value) for text, value in found.items()}


def _check_alternatives(table: Table, pattern: str, values: Mapping[str, float]) -> None:
    """A pattern such as (A|B|C) and the values cover each other."""
    found = _ALTERNATIVES.search(pattern)
    if found is None or re.compile(pattern).groups > 1:
        return
    words = found[1].split("|")
    ignores_case = bool(re.compile(pattern).flags & re.IGNORECASE)
    known = {text.lower() if ignores_case else text for text in values}
    if uncovered := [word for word in words if (word.lower() if ignores_case else word) not in known]:
        raise table.wrong("values", f"one for {uncovered[0]} too, which the pattern finds")
    if unreachable := [
        text for text in values if not re.fullmatch(found[1], text, re.I if ignores_case else 0)
    ]:
        raise table.wrong("values", f"no {unreachable[0]}, which the pattern cannot find")


def _keys(table: Table, unit: Unit, values: Mapping[str, float]) -> tuple[str, ...]:
    keys = table.names("keys")
    count = {"one": 1 if values else None, "pair": 1 if values else 2, "list": 1}[unit]
    if not keys or (count is not None and len(keys) != count):
        expected = {
            None: "the names of one number or more",
            1: "one name in a list",
            2: "two names: the scores of both",
        }
        raise table.wrong("keys", f"{expected[count]}, as they stand in the JSON object")
    if unit == "one" and not values and (odd := [key for key in keys if not _NAME.fullmatch(key)]):
        raise table.wrong("keys", f"names of letters, digits and _, as they become columns, not {odd[0]!r}")
    return keys


def _tie_break(table: Table, unit: Unit, keys: tuple[str, ...]) -> dict[str, Any]:
    if "tie_break" not in table and "middle" not in table:
        return {}
    if unit != "pair" or len(keys) != 2:
        raise table.wrong("tie_break", "nothing, or a pair whose two scores are read")
    return {"tie_break": table.text("tie_break"), "middle": table.number("middle")}
