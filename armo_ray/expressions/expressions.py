"""Expressions over the columns of scores, parsed into SQL and never evaluated as code.

    score >= q0.9 and (helpsteer_helpfulness > 0.5 or not subset in ('math', 'code')) and num_response_tokens < 2048

The grammar has comparisons, `and`, `or`, `not`, `in`, `is null`, + - * /, numbers, 'text', true and false. A name is
a column, or a field of a struct column after a dot; a name that is not a plain word is quoted, as in "my column".
The name of a reward alone is short for its field in `rewards`. `q0.9` on the right of a comparison is the quantile
0.9 of the expression on the left.

As in SQL, a comparison with a missing value is neither true nor false. NaN and the result of a division by zero
count as missing. Numbers are float64, so a float32 column seldom equals a fraction exactly.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn

from armo_ray.errors import ConfigError
from armo_ray.expressions.tokens import Token, point, tokenize

Kind = Literal["truth", "number", "text", "list", "nested"]

_IDENTIFIER = re.compile(r'[^\W\d]\w*|"(?:[^"]|"")+"')
_WORDS = {"and", "or", "not", "in", "is", "null", "true", "false"}
_COMPARE = {"=": "=", "==": "=", "!=": "<>", "<>": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "DECIMAL", "FLOAT", "DOUBLE")
_KIND_NAMES = {
    "truth": "a condition",
    "number": "a number",
    "text": "text",
    "list": "a list",
    "nested": "a nested value",
}
_DEEPEST = 50  # limit for nested parentheses and nots, far below the limits of Python and DuckDB


@dataclass(frozen=True)
class Quantile:
    """A threshold that must be computed from the data before the expression is evaluated."""

    name: str  # name of its column in the SQL of the expression
    of: str  # SQL of the value whose quantile it is
    fraction: float


@dataclass(frozen=True)
class Expression:
    """A parsed expression."""

    text: str
    sql: str  # for DuckDB; reads `columns` and one column for each quantile
    columns: tuple[str, ...]
    quantiles: tuple[Quantile, ...] = ()


def parse(text: str, columns: Mapping[str, str], kind: Kind | None = "truth", prefix: str = "") -> Expression:
    """Parse an expression.

    Args:
        columns: maps the name of every column, as `name_of` writes it, to its DuckDB type.
        kind: the required kind of the result: "truth" for a condition, "number", or None for any kind.
        prefix: a struct whose fields are the columns in SQL; names that begin with it lose it.

    Raises:
        ConfigError: the text is not an expression; the message points at the error.
    """
    try:
        return _Parser(text, columns, prefix).whole(kind)
    except ConfigError as error:
        message, shown, mark = str(error).rsplit("\n", 2)
        if quoted := _unquoted(text, len(mark) - len("  ^"), columns):
            message = f"{message.partition('; ')[0]}; a name like that is quoted: {quoted}"
        raise ConfigError(f"{message}\n{shown}\n{mark}") from None


def _unquoted(text: str, at: int, columns: Iterable[str]) -> str | None:
    """The longest column name that needs quotes and occurs around index `at` of the text without them."""
    matches = []
    for name in columns:
        bare = ".".join(_path(name))
        starts = range(max(at - len(bare) + 1, 0), at + 1)
        if bare != name and any(text.startswith(bare, start) for start in starts):
            matches.append(name)
    return max(matches, key=len, default=None)


def name_of(*path: str) -> str:
    """The name of a column, or of a field of a struct column, in an expression; quoted where necessary."""
    return ".".join(
        p if re.fullmatch(r"[^\W\d]\w*", p) and p.lower() not in _WORDS else quote(p) for p in path
    )


def quote(name: str) -> str:
    """A name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def advice(name: str, names: Iterable[str]) -> str:
    """Advice for a name that is not among `names`: the closest ones in any case, or all of them."""
    names = list(names)
    by_lower = {known.lower(): known for known in names}
    close = [by_lower[lower] for lower in difflib.get_close_matches(name.lower(), by_lower, 3)]
    return f"did you mean {' or '.join(close)}?" if close else f"the names are {', '.join(names)}"


@dataclass(frozen=True)
class _Value:
    sql: str
    kind: Kind
    at: int  # index of its first character in the text
    element: Kind | None = None  # kind of the elements of a list


class _Parser:
    """A recursive descent parser. Every method parses what it is named after, from the next token on."""

    def __init__(self, text: str, columns: Mapping[str, str], prefix: str) -> None:
        self.text = text
        self.columns = columns
        self.prefix = prefix
        self.used: dict[str, None] = {}
        self.quantiles: dict[str, Quantile] = {}
        self.depth = 0
        self.place = 0
        self.tokens = tokenize(text)

    @property
    def next(self) -> Token:
        return self.tokens[self.place]

    def take(self, *words: str) -> str:
        """Consume and return the next token if it is one of these words or signs; otherwise return ""."""
        word = self.next.word if self.next.word in words else ""
        self.place += bool(word)
        return word

    def fail(self, message: str, at: int) -> NoReturn:
        point(message, self.text, at)

    def need(self, word: str) -> None:
        if not self.take(word):
            self.fail(f"expected {word}, found {self.next.text}", self.next.at)

    def whole(self, kind: Kind | None) -> Expression:
        value = self.disjunction()
        if self.next.word in _COMPARE:
            self.fail("comparisons do not chain: write a < b and b < c", self.next.at)
        if self.next.kind != "end":
            self.fail(f"expected and, or, or the end, found {self.next.text}", self.next.at)
        if kind is not None:
            self.expect(value, kind)
        return Expression(self.text, value.sql, tuple(self.used), tuple(self.quantiles.values()))

    def expect(self, value: _Value, *kinds: Kind) -> None:
        if value.kind not in kinds:
            expected = " or ".join(_KIND_NAMES[kind] for kind in kinds)
            self.fail(f"expected {expected}, but this is {_KIND_NAMES[value.kind]}", value.at)

    def chain(self, operand: Callable[[], _Value], kind: Kind, *words: str) -> _Value:
        """Operands of one kind with any of these words or signs between them; left-associative."""
        left = operand()
        while word := self.take(*words):
            self.expect(left, kind)
            right = operand()
            self.expect(right, kind)
            other = f"nullif({_double(right)}, 0)" if word == "/" else _double(right)
            pair = (_double(left), other) if kind == "number" else (left.sql, right.sql)
            left = _Value(f"({pair[0]} {word.upper()} {pair[1]})", kind, left.at)
        return left

    def disjunction(self) -> _Value:
        return self.chain(self.conjunction, "truth", "or")

    def conjunction(self) -> _Value:
        return self.chain(self.negation, "truth", "and")

    def negation(self) -> _Value:
        at = self.next.at
        if not self.take("not"):
            return self.predicate()
        value = self.deeper(self.negation)
        self.expect(value, "truth")
        return _Value(f"(NOT {value.sql})", "truth", at)

    def deeper(self, operand: Callable[[], _Value]) -> _Value:
        """Parse an operand one level deeper; fails beyond _DEEPEST levels."""
        self.depth += 1
        if self.depth > _DEEPEST:
            self.fail(f"more than {_DEEPEST} levels of nesting", self.next.at)
        value = operand()
        self.depth -= 1
        return value

    def predicate(self) -> _Value:
        left = self.sum()
        if sign := self.take(*_COMPARE):
            return self.comparison(left, _COMPARE[sign])
        if self.take("is"):
            negated = self.take("not").upper()
            self.need("null")
            return _Value(f"({left.sql} IS {negated} NULL)", "truth", left.at)
        negated = self.take("not")
        if negated:
            self.need("in")
        elif not self.take("in"):
            return left
        sql = self.membership(left)
        return _Value(f"(NOT {sql})" if negated else sql, "truth", left.at)

    def comparison(self, left: _Value, sign: str) -> _Value:
        if self.next.kind == "quantile":
            self.expect(left, "number")
            right = _Value(quote(self.quantile(left).name), "number", left.at)
        else:
            right = self.sum()
        if not (left.kind == "truth" and sign in ("=", "<>")):
            self.expect(left, "number", "text")
        self.expect(right, left.kind)
        return _Value(f"({left.sql} {sign} {right.sql})", "truth", left.at)

    def quantile(self, of: _Value) -> Quantile:
        fraction, end = float(self.next.text[1:]), self.tokens[self.place - 1].at
        self.place += 1
        quantile = Quantile(f"q{fraction} of {self.text[of.at : end].strip()}", of.sql, fraction)
        self.quantiles[quantile.name] = quantile
        return quantile

    def membership(self, left: _Value) -> str:
        """The right side of `in`: values in parentheses, or a column of lists."""
        self.expect(left, "number", "text")
        if self.next.kind == "name":
            column = self.primary()
            self.expect(column, "list")
            if left.kind != column.element:
                self.fail(f"the list holds no {left.kind}s", column.at)
            return f"list_contains({column.sql}, {left.sql})"
        self.need("(")
        values = [self.sum()]
        while self.take(","):
            values.append(self.sum())
        self.need(")")
        for value in values:
            self.expect(value, left.kind)
        return f"({left.sql} IN ({', '.join(value.sql for value in values)}))"

    def sum(self) -> _Value:
        return self.chain(self.product, "number", "+", "-")

    def product(self) -> _Value:
        return self.chain(self.factor, "number", "*", "/")

    def factor(self) -> _Value:
        at = self.next.at
        if not self.take("-"):
            return self.primary()
        value = self.deeper(self.factor)
        self.expect(value, "number")
        return _Value(f"(- {value.sql if value.sql.isdecimal() else _double(value)})", "number", at)

    def primary(self) -> _Value:
        token = self.next
        if self.take("("):
            value = self.deeper(self.disjunction)
            self.need(")")
            return _Value(value.sql, value.kind, token.at, value.element)
        self.place += 1
        if token.kind == "number":
            return _Value(self.number(token), "number", token.at)
        if token.kind == "text":
            return _Value(token.text, "text", token.at)
        if token.word in ("true", "false"):
            return _Value(token.word, "truth", token.at)
        if token.kind == "name" and token.word not in _WORDS:
            return self.column(token)
        quantile = "; a quantile must be on the right of a comparison" if token.kind == "quantile" else ""
        return self.fail(f"expected a column or a value, found {token.text}{quantile}", token.at)

    def number(self, token: Token) -> str:
        if token.text.isdecimal() and len(token.text) < 19:  # fits in an int64, which compares exactly
            return str(int(token.text))
        value = float(token.text)
        if not math.isfinite(value):
            self.fail("larger than a float64", token.at)
        return repr(value) if "e" in repr(value) else f"{value!r}e0"  # DuckDB parses 0.9 as a DECIMAL

    def column(self, token: Token) -> _Value:
        path = _path(token.text)
        if name_of(*path) not in self.columns:
            path = [*path[:-1], "rewards", path[-1]]
        name = name_of(*path)
        if name not in self.columns:
            names = dict.fromkeys(
                [*self.columns, *(column.replace("rewards.", "") for column in self.columns)]
            )
            quoted = token.text.startswith('"')
            hint = "text is written in single quotes" if quoted else advice(token.text, names)
            self.fail(f"unknown column {token.text}; {hint}", token.at)
        self.used[name] = None
        bare = path[1:] if path[0] == self.prefix else path
        sql, type_name = ".".join(map(quote, bare)), self.columns[name].upper()
        kind = _kind(type_name)
        if kind == "list":
            return _Value(sql, kind, token.at, _kind(type_name.rpartition("[")[0]))
        if type_name in ("FLOAT", "DOUBLE"):
            sql = f"nullif({sql}::DOUBLE, 'nan'::DOUBLE)"
        elif kind == "text":
            sql = f"{sql}::VARCHAR"  # dates and other types are compared as text
        return _Value(sql, kind, token.at)


def _path(name: str) -> list[str]:
    """The column and the fields in a written name, without quotes."""
    return [p[1:-1].replace('""', '"') if p[0] == '"' else p for p in _IDENTIFIER.findall(name)]


def _double(value: _Value) -> str:
    return value.sql if value.sql.startswith("nullif(") else f"{value.sql}::DOUBLE"


def _kind(name: str) -> Kind:
    """The kind of values of a DuckDB type."""
    if name.endswith("]"):
        return "list"
    if name.startswith(("STRUCT", "MAP", "UNION")):
        return "nested"
    if name.removeprefix("U").startswith(_NUMBERS):
        return "number"
    return "truth" if name == "BOOLEAN" else "text"
