"""Labels stay with the response that they were given to, in rows of every layout."""

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from armo_ray.errors import ConfigError
from armo_ray.text.conversations import Candidate, candidates_of
from armo_ray.text.detect import detect
from armo_ray.text.input_columns import of_rows
from armo_ray.text.label_options import resolve
from armo_ray.text.labels import Label, UnreadableError, labels_of, number_of, of_record, record, values_of
from armo_ray.text.layouts import Layout
from armo_ray.text.named_layouts import NAMED

Q = "Name a river in Ireland."
Row = dict[str, Any]


def layout_of(row: Row, **options: Any) -> Layout:
    return detect(of_rows([row]), **options)


def by_text(row: Row, column: str, **options: Any) -> dict[str, Any]:
    """The label of each response, by its text; responses that are rejected have none."""
    layout = layout_of(row, **options)
    candidates = candidates_of(row, layout)
    (label,) = resolve({"x": column}, layout, of_rows([row])).values()
    values = values_of(row, label, candidates)
    return {
        f"{candidate.role} {candidate.response}": value
        for candidate, value in zip(candidates, values, strict=True)
    }


PREFERENCE = {"prompt": Q, "chosen": "good", "rejected": "bad"}
SEVERAL = {"prompt": Q, "chosen": ["a", "b"], "rejected": ["c"]}
ROLLOUTS = {"prompt": Q, "responses": ["a", "b", "c"]}
CHAT = [{"role": "user", "content": Q}, {"role": "assistant", "content": "a"}]
PAIR = {"prompt": Q, "first": "a", "second": "b"}
WINNER = {
    "column": {"first": "first", "second": "second", "winner": "w"},
    "winner": {"1": "first", "2": "second", "0": "tie"},
}
RATED = {
    "column": {"first": "first", "second": "second", "first_rating": "s[0]", "second_rating": "s[1]"},
}
RANKED = {"context": CHAT[:1]}


def ranked(**ranks: int) -> list[Row]:
    return [
        {"rank": rank, "y": 10 * ord(text), "completion": [{"role": "assistant", "content": text}]}
        for text, rank in ranks.items()
    ]


CASES: dict[str, tuple[Row, str, Mapping[str, Any], dict[str, float | None]]] = {
    "one-response": ({"prompt": Q, "response": "a", "y": 3}, "y", {}, {"response a": 3}),
    "messages": ({"messages": CHAT, "y": 3}, "y", {}, {"response a": 3}),
    "rollouts": (
        ROLLOUTS | {"y": [1, None, 3]},
        "y",
        {},
        {"response a": 1, "response b": None, "response c": 3},
    ),
    "one-of-a-list": ({"prompt": Q, "responses": ["a"], "y": 4}, "y", {}, {"response a": 4}),
    "all-missing": (
        ROLLOUTS | {"y": "N/A"},
        "y",
        {},
        {"response a": None, "response b": None, "response c": None},
    ),
    "json-text": (
        ROLLOUTS | {"y": "[1, 2, 3]"},
        "y[]",
        {},
        {"response a": 1, "response b": 2, "response c": 3},
    ),
    "nested": (
        {"prompt": Q, "completions": [{"text": "a", "n": {"r": "1"}}, {"text": "b", "n": {"r": "N/A"}}]},
        "completions[].n.r",
        {"overrides": {"responses": "completions[].text"}},
        {"response a": 1, "response b": None},
    ),
    "preference-list": (PREFERENCE | {"y": [5, 1]}, "y", {}, {"chosen good": 5, "rejected bad": 1}),
    "preference-columns": (
        PREFERENCE | {"a": 5, "b": 1},
        "a,b",
        {},
        {"chosen good": 5, "rejected bad": 1},
    ),
    "several-chosen": (
        SEVERAL | {"a": [5, 6], "b": 1},
        "a,b",
        {},
        {"chosen a": 5, "chosen b": 6, "rejected c": 1},
    ),
    "several-in-one-list": (
        SEVERAL | {"y": [5, 6, 1]},
        "y",
        {},
        {"chosen a": 5, "chosen b": 6, "rejected c": 1},
    ),
    **{
        f"pair-{winner}-{column}": (
            PAIR | {"w": winner, "y": [1, 2], "ya": 1, "yb": 2},
            column,
            {"overrides": WINNER["column"], "winner": WINNER["winner"]},
            {f"{roles[0]} a": 1, f"{roles[1]} b": 2},
        )
        for column in ("y", "ya,yb")
        for winner, roles in {
            1: ("chosen", "rejected"),
            2: ("rejected", "chosen"),
            0: ("response", "response"),
        }.items()
    },
    **{
        f"rated-{first}-{second}": (
            PAIR | {"s": [first, second]},
            "s",
            {"overrides": RATED["column"]},
            {f"{roles[0]} a": first, f"{roles[1]} b": second},
        )
        for first, second, roles in (
            (7, 2, ("chosen", "rejected")),
            (2, 7, ("rejected", "chosen")),
            (5, 5, ("response", "response")),
        )
    },
    "ranked": (
        RANKED | {"completions": ranked(a=1, b=0, c=2, d=0)},
        "completions[].y",
        {},
        {"chosen b": 980, "chosen d": 1000, "rejected a": 970, "rejected c": 990},
    ),
    "ranked-tie": (
        RANKED | {"completions": ranked(a=0, b=0)},
        "completions[].y",
        {},
        {"response a": 970, "response b": 980},
    ),
    "first-is-empty": (
        PAIR | {"first": "", "w": 2, "y": [1, 2]},
        "y",
        {"overrides": WINNER["column"], "winner": WINNER["winner"]},
        {"rejected ": 1, "chosen b": 2},
    ),
    "one-is-null": (
        {"prompt": Q, "responses": ["a", None, "c"], "y": [1, 2, 3]},
        "y",
        {},
        {"response a": 1, "response ": 2, "response c": 3},
    ),
}


@pytest.mark.parametrize(("row", "column", "options", "expected"), CASES.values(), ids=CASES.keys())
def test_a_label_stays_with_its_response(
    row: Row, column: str, options: Mapping[str, Any], expected: dict[str, float | None]
) -> None:
    assert by_text(row, column, **options) == expected


@pytest.mark.parametrize(
    ("row", "column"),
    [
        (ROLLOUTS | {"y": 3}, "y"),
        (ROLLOUTS | {"y": [1, 2]}, "y"),
        (ROLLOUTS | {"y": []}, "y"),
        (PREFERENCE | {"y": 3}, "y"),
        (SEVERAL | {"a": 5, "b": 1}, "a,b"),
        (SEVERAL | {"a": [5], "b": [6, 1]}, "a,b"),
        (ROLLOUTS | {"y": "no JSON"}, "y[]"),
    ],
)
def test_labels_that_cannot_be_attached_are_lost_for_all_responses_of_the_row(row: Row, column: str) -> None:
    layout = layout_of(row)
    candidates = candidates_of(row, layout)
    found = labels_of(row, resolve({"x": column}, layout, of_rows([row])), candidates)
    assert found == [({"x": None}, ["label_lost:x"])] * len(candidates)


def test_a_value_that_is_no_number_is_lost_for_its_response_alone() -> None:
    row = ROLLOUTS | {"y": ["4", "four", None]}
    layout = layout_of(row)
    found = labels_of(row, resolve({"x": "y"}, layout, of_rows([row])), candidates_of(row, layout))
    assert found == [({"x": 4.0}, []), ({"x": None}, ["label_lost:x"]), ({"x": None}, [])]


def test_a_row_that_is_not_parsed_has_no_labels_and_no_flag() -> None:
    unparsed = [Candidate(None, None, [], "", "malformed_row", "x")]
    assert labels_of({"y": "four"}, {"x": Label(("y",))}, unparsed) == [({"x": None}, [])]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (True, 1.0),
        (False, 0.0),
        (4, 4.0),
        (0.5, 0.5),
        (Decimal("1.5"), 1.5),
        ("4", 4.0),
        (" 4.5 ", 4.5),
        ("-1e2", -100.0),
        (b"3", 3.0),
        (None, None),
        ("", None),
        (" ", None),
        ("N/A", None),
        ("n/a", None),
        ("NA", None),
        ("nan", None),
        (math.nan, None),
        (Decimal("NaN"), None),
    ],
)
def test_numbers_are_read_and_what_says_nothing_is_missing(value: Any, number: float | None) -> None:
    assert number_of(value, "y") == number


@pytest.mark.parametrize(
    "value", ["four", "4/5", "1_0", "inf", "٤", [4], {"a": 4}, math.inf, 1e39, 10**400, Decimal("sNaN")]
)
def test_anything_else_is_unreadable(value: Any) -> None:
    with pytest.raises(UnreadableError, match=r"^y: "):
        number_of(value, "y")


MATCHED = Label(("notes[].r",), 1, 5, ("topic", "style"), ("said[].m", "notes[].m"))


def matched(topic: str, notes: list[Row]) -> dict[str, Any]:
    row = {
        "prompt": Q,
        "topic": topic,
        "said": [{"m": "p", "t": "a"}, {"m": "q", "t": "b"}],
        "notes": notes,
    }
    layout = layout_of(row, overrides={"responses": "said[].t"})
    candidates = candidates_of(row, layout)
    values = values_of(row, MATCHED, candidates)
    return dict(zip("ab", values, strict=True))


def test_values_in_another_order_are_matched_by_name() -> None:
    notes = [{"m": "q", "r": "2"}, {"m": "p", "r": "1"}]
    assert matched("style", notes) == {"a": 1, "b": 2}
    assert matched("style", notes[:1]) == {"a": None, "b": 2}
    assert matched("speed", notes) == {"a": None, "b": None}
    twice = matched("style", [notes[0], notes[0]])
    assert [str(value) for value in twice.values()] == [
        "notes[].r: a name occurs twice, so the responses cannot be told apart"
    ] * 2


def test_labels_are_read_back_from_json() -> None:
    labels = {"x": Label(("a", "b")), "y": MATCHED}
    assert of_record(json.loads(json.dumps(record(labels)))) == labels


@pytest.mark.parametrize(
    ("row", "given", "message"),
    [
        (
            PREFERENCE | {"helpful": 1},
            {"x": "helpfull"},
            r"--label x=helpfull: no column helpfull; .*helpful",
        ),
        (ROLLOUTS | {"y": [1]}, {"x": "responses,y"}, "holds its responses in one place"),
        (PREFERENCE, {"x": "chosen,rejected,prompt"}, "expected COLUMN, or COLUMN,COLUMN"),
        (
            ROLLOUTS | {"n": {"rating": [1]}},
            {"x": "n.ratings"},
            r"--label x=n\.ratings: no such path; .*n\.rating",
        ),
        (PREFERENCE, {"auto": "auto"}, r"the layout preference has no labels.*--label NAME=COLUMN"),
        (PREFERENCE | {"y": 1}, {"x": "y", "X": "y"}, "x and X differ only in case"),
        ({**NAMED["oasst-tree"].example, "y": [1, 2]}, {"x": "y"}, "builds its responses from a tree"),
        (RANKED | {"completions": ranked(a=1, b=0)}, {"x": "context,context"}, "in one place"),
    ],
)
def test_labels_that_an_input_cannot_have_are_refused(
    row: Row, given: Mapping[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(given, layout_of(row), of_rows([row]))


def test_a_column_whose_name_has_a_comma_is_one_column() -> None:
    row = {"prompt": Q, "response": "a", "y,z": 3}
    assert by_text(row, "y,z") == {"response a": 3}


def test_a_column_of_several_declared_labels_is_read_in_all_rows() -> None:
    row: Row = dict(NAMED["code-ultrafeedback"].example)
    layout, given = layout_of(row), {"rating": "annotations[].rating"}
    (label,) = resolve(given, layout, of_rows([row])).values()
    assert (label.low, label.high) == (1, 5)
    for preference in ("complexity", "style"):
        one = row | {"preference": preference}
        assert values_of(one, label, candidates_of(one, layout)) == [5, 1]
    assert set(resolve({"auto": "auto"} | given, layout, of_rows([row]))) == {
        *("complexity", "style", "explanation", "instruction_following", "readability", "rating")
    }
