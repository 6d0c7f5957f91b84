"""Expressions agree with an independent evaluator, and text in them is never evaluated."""

from collections.abc import Callable
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import name_of, parse, quote

COLUMNS = {
    "score": "FLOAT",
    "rewards.helpsteer_helpfulness": "FLOAT",
    "rewards.code_style": "FLOAT",
    "gating.code_style": "FLOAT",
    "chosen.rewards.code_style": "FLOAT",
    "num_response_tokens": "INTEGER",
    "subset": "VARCHAR",
    "flags": "VARCHAR[]",
    "ok": "BOOLEAN",
    "day": "DATE",
}
Row = dict[str, Any]
Meaning = Callable[[Row], Any]

numbers = st.one_of(st.none(), st.integers(-3, 3).map(float), st.floats(-8, 8, width=32))
rows = st.fixed_dictionaries(
    {
        "x": numbers,
        "y": numbers,
        "n": st.none() | st.integers(-5, 5),
        "s": st.none() | st.text("a'\"é-", max_size=2),
    }
)


def lift(function: Callable[[Any, Any], Any], a: Meaning, b: Meaning) -> Meaning:
    """The function of two values; missing if either is."""

    def meaning(row: Row) -> Any:
        left, right = a(row), b(row)
        return None if left is None or right is None else function(left, right)

    return meaning


def both(row: Row, a: Meaning, b: Meaning) -> Any:
    values = (a(row), b(row))
    return False if False in values else None if None in values else True


def negated(value: Any) -> Any:
    return None if value is None else not value


ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else None,
}
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">=": lambda a, b: a >= b,
    ">": lambda a, b: a > b,
}
atoms = st.one_of(
    st.sampled_from("xyn").map(lambda c: (c, lambda row, c=c: None if row[c] is None else float(row[c]))),
    st.integers(0, 4).map(lambda i: (str(i), lambda row: float(i))),
    st.sampled_from(["0.5", "1.25e0", ".1"]).map(lambda t: (t, lambda row: float(t))),
)
sums = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(list(ARITHMETIC)), inner).map(
            lambda t: (f"({t[0][0]} {t[1]} {t[2][0]})", lift(ARITHMETIC[t[1]], t[0][1], t[2][1]))
        ),
        inner.map(lambda v: (f"-{v[0]}", lambda row: None if v[1](row) is None else -v[1](row))),
    ),
    max_leaves=4,
)
strings = st.text("a'\"é-", max_size=2)
predicates = st.one_of(
    st.tuples(sums, st.sampled_from(list(COMPARISONS)), sums).map(
        lambda t: (f"{t[0][0]} {t[1]} {t[2][0]}", lift(COMPARISONS[t[1]], t[0][1], t[2][1]))
    ),
    sums.map(lambda v: (f"{v[0]} is null", lambda row: v[1](row) is None)),
    st.tuples(st.sampled_from(list(COMPARISONS)), strings).map(
        lambda t: (
            f"s {t[0]} '{_doubled(t[1])}'",
            lift(COMPARISONS[t[0]], lambda row: row["s"], lambda row: t[1]),
        )
    ),
    st.lists(strings, min_size=1, max_size=3).map(
        lambda values: (
            f"s in ({', '.join(chr(39) + _doubled(v) + chr(39) for v in values)})",
            lambda row: None if row["s"] is None else row["s"] in values,
        )
    ),
)
conditions = st.recursive(
    predicates,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(
            lambda t: (f"({t[0][0]}) and ({t[1][0]})", lambda row: both(row, t[0][1], t[1][1]))
        ),
        st.tuples(inner, inner).map(
            lambda t: (
                f"({t[0][0]} or {t[1][0]})",
                lambda row: negated(both(row, lambda r: negated(t[0][1](r)), lambda r: negated(t[1][1](r)))),
            )
        ),
        inner.map(lambda v: (f"not ({v[0]})", lambda row: negated(v[1](row)))),
    ),
    max_leaves=5,
)


def _doubled(text: str) -> str:
    return text.replace("'", "''")


def evaluate(sql: str, row: Row, types: dict[str, str]) -> Any:
    columns = ", ".join(f"$v{i}::{types[name]} AS {quote(name)}" for i, name in enumerate(row))
    values = {f"v{i}": value for i, value in enumerate(row.values())}
    # to the end: other tests share the connection
    ((actual,),) = duckdb.execute(f"SELECT {sql} FROM (SELECT {columns})", values).fetchall()
    return actual


@settings(max_examples=300)
@given(conditions, rows)
def test_an_expression_means_what_it_says(condition: tuple[str, Meaning], row: Row) -> None:
    text, meaning = condition
    types = {"x": "DOUBLE", "y": "FLOAT", "n": "INTEGER", "s": "VARCHAR"}
    assert evaluate(parse(text, types).sql, row, types) == meaning(row), text


@settings(max_examples=200)
@given(
    st.text(max_size=12),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
)
def test_text_and_names_are_never_evaluated(name: str, text: str) -> None:
    if not name or "\0" in name or name.encode(errors="ignore").decode() != name:
        name = "a'; drop table t; --\""
    types = {name_of(name): "VARCHAR"}
    expression = parse(f"{name_of(name)} = '{_doubled(text)}'", types)
    assert expression.columns == (name_of(name),)
    assert evaluate(expression.sql, {name: text}, {name: "VARCHAR"}) is True
    assert evaluate(expression.sql, {name: text + "x"}, {name: "VARCHAR"}) is False


@settings(max_examples=300)
@given(st.text("score><=0.9q'\"() andortinul,+-*/;", max_size=20) | st.text(max_size=20))
def test_any_other_text_is_an_error_that_points_into_it(text: str) -> None:
    try:
        expression = parse(text, {"score": "FLOAT"})
    except ConfigError as error:
        message, shown, mark = str(error).rsplit("\n", 2)
        assert message
        assert mark.strip() == "^"
        assert len(mark) <= len(shown) + 1
    else:
        quantiles = {quantile.name: 0.0 for quantile in expression.quantiles}
        row = {"score": 0.5, **quantiles}
        assert evaluate(expression.sql, row, {"score": "FLOAT", **dict.fromkeys(quantiles, "DOUBLE")}) in (
            True,
            False,
            None,
        )


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("helpsteer_helpfulness > 0", ("rewards.helpsteer_helpfulness",)),
        (
            "rewards.helpsteer_helpfulness > gating.code_style",
            ("rewards.helpsteer_helpfulness", "gating.code_style"),
        ),
        ("chosen.code_style > 0", ("chosen.rewards.code_style",)),
        ("SCORE > 0 AND 'truncated' not in flags", None),
        ("score > 0 AND 'truncated' NOT IN flags and ok", ("score", "flags", "ok")),
        ("day >= '2026-11-01' and score / 2 - -1 > 3", ("day", "score")),
    ],
)
def test_names_are_columns_and_the_name_of_a_reward_is_enough(
    text: str, columns: tuple[str, ...] | None
) -> None:
    if columns is None:
        with pytest.raises(ConfigError, match="unknown column SCORE"):
            parse(text, COLUMNS)
    else:
        assert parse(text, COLUMNS).columns == columns


@pytest.mark.parametrize(
    ("text", "message", "at"),
    [
        (
            "helpsteer_helpfulnes >= 0.5",
            "unknown column helpsteer_helpfulnes; did you mean helpsteer_helpfulness",
            0,
        ),
        ("score > 0 and gating.code_stile > 0", "did you mean gating.code_style", 14),
        ('subset = "math"', "text is written in single quotes", 9),
        ("0 < score < 1", "comparisons do not chain", 10),
        ("score > q0.9 + 1", "expected and, or, or the end", 13),
        ("q0.9 < score", "a quantile must be on the right", 0),
        ("subset > q0.9", "expected a number, but this is text", 0),
        ("score", "expected a condition, but this is a number", 0),
        ("score > 'a'", "expected a number, but this is text", 8),
        ("ok < true", "expected a number or text", 0),
        ("(score > 1", "expected ), found the end", 10),
        ("score in ()", "expected a column or a value", 10),
        ("1 in flags", "the list holds no numbers", 5),
        ("flags = 'a'", "this is a list", 0),
        ("", "expected a column or a value, found the end", 0),
        ("subset = 'abc", "a quote that is not closed", 9),
        ("score > 1; drop table scores", "not part of an expression", 9),
        ("score = 1e999", "larger than a float64", 8),
        ("(" * 99 + "ok" + ")" * 99, "more than 50 levels", 51),
        ("subset = '\0'", "a character that cannot be compared", 10),
    ],
)
def test_an_error_says_what_is_wrong_and_where(text: str, message: str, at: int) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, COLUMNS)
    assert message in str(caught.value)
    assert str(caught.value).splitlines()[-1] == f"  {' ' * at}^"


QUOTED = {
    ("chosen-rating",): ("chosen-rating >= 4", 0),
    ("chosen", "chosen-rating"): ("score > 1 and chosen.chosen-rating >= 4", 14),
    ("model name",): ("score > 1 and model name = 'm1'", 14),
    ("meta.score",): ("meta.score > 0.5", 0),
    ("5star",): ("not 5star > 2", 4),
    ("in",): ("in > 3", 0),
    ("a:b",): ("score > 0 or (a:b = 'x')", 14),
    ('it"s',): ("it\"s = 'x'", 0),
}


@pytest.mark.parametrize("path", QUOTED, ids=".".join)
def test_an_error_quotes_a_name_that_needs_quotes(path: tuple[str, ...]) -> None:
    text, at = QUOTED[path]
    columns = {**COLUMNS, name_of(*path): "VARCHAR"}
    with pytest.raises(ConfigError) as caught:
        parse(text, columns)
    message, _, mark = str(caught.value).rsplit("\n", 2)
    assert message.endswith(f"; a name like that is quoted: {name_of(*path)}")
    assert len(mark) - 3 >= at
    assert parse(f"{name_of(*path)} = 'x'", columns).columns == (name_of(*path),)


def test_an_error_does_not_quote_a_name_elsewhere() -> None:
    columns = {**COLUMNS, name_of("in"): "VARCHAR"}
    with pytest.raises(ConfigError, match=r"^unknown column nothing") as caught:
        parse("nothing = 1 and score in (1)", columns)
    assert "quoted" not in str(caught.value)


def test_a_quantile_is_returned_as_a_value_to_compute() -> None:
    expression = parse("score * 2 >= q0.9 or helpsteer_helpfulness < q.5", COLUMNS)
    assert [quantile.fraction for quantile in expression.quantiles] == [0.9, 0.5]
    values = {quantile.name: 1.0 for quantile in expression.quantiles}
    row = {"score": 0.5, "rewards": {"helpsteer_helpfulness": 1.0}, **values}
    types = {
        "score": "FLOAT",
        "rewards": "STRUCT(helpsteer_helpfulness FLOAT)",
        **dict.fromkeys(values, "DOUBLE"),
    }
    assert evaluate(expression.sql, row, types) is True
    assert evaluate(expression.sql, {**row, "score": 0.25}, types) is False


def test_an_expression_may_be_a_number_and_missing_values_stay_missing() -> None:
    expression = parse("0.5 * x + y / n", {"x": "DOUBLE", "y": "DOUBLE", "n": "BIGINT"}, "number")
    types = {"x": "DOUBLE", "y": "DOUBLE", "n": "BIGINT"}
    assert evaluate(expression.sql, {"x": 2.0, "y": 3.0, "n": 4}, types) == 1.75
    assert evaluate(expression.sql, {"x": 2.0, "y": 3.0, "n": 0}, types) is None
    assert evaluate(expression.sql, {"x": float("nan"), "y": 3.0, "n": 4}, types) is None
    with pytest.raises(ConfigError, match="expected a number, but this is a condition"):
        parse("x > 1", types, "number")
