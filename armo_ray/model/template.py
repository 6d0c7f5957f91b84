"""Chat templates, rendered in bounded time and memory: a template is a program that came with a checkpoint.

For one conversation a template may take 500,000 steps, plus one for every character of the messages. A step is one
pass of a loop, a tenth of a macro call, or 16 characters that are written, created or passed to a filter. A text or
list may have 2 million characters or entries, plus 4 for every character of the messages. A template that exceeds a
limit ends in TemplateError, within a few seconds, at the same point on any machine and in any thread.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

_STEPS = 500_000
_STEP_CHARS = 16
_MOST_CHARS = 2_000_000
_MOST_BITS = 1 << 16  # limit for an integer
# operations whose result is as long as one of their numbers says
_FORMATTING = {"%", "format", "format_map"}
_FILLING = {
    "batch",
    "center",
    "expandtabs",
    "indent",
    "ljust",
    "rjust",
    "slice",
    "tojson",
    "wordwrap",
    "zfill",
}
_LONG_WIDTH = re.compile(r"\d{6}")
_COMPARING = {"in", "eq", "==", "equalto", "ne", "!="}
_REPEATED = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)
_SIZED = (str, bytes, list, tuple, dict, range)


@dataclass
class _Budget:
    """The limits that remain for a rendering."""

    steps: int
    most: int  # limit for the characters of a text or the entries of a list

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise jinja2.TemplateError("it takes too many steps: does it loop forever?")

    def made(self, value: Any) -> Any:
        """Check and return a value that a template created. Raises TemplateError if it is too large."""
        if isinstance(value, (str, bytes, list, tuple, dict)):
            self.check_size(len(value))
            self.spend(len(value) // _STEP_CHARS)
        elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise jinja2.TemplateError("it creates a number that is too large")
        return value

    def check_size(self, size: int) -> None:
        if size > self.most:
            raise jinja2.TemplateError(f"it creates a text or list that is too large: more than {self.most}")


_BUDGET: ContextVar[_Budget | None] = ContextVar("budget", default=None)


def _budget() -> _Budget:
    """The budget of the current rendering, or a full one while a template is compiled."""
    return _BUDGET.get() or _Budget(_STEPS, _MOST_CHARS)


def render(template: str, messages: Sequence[Mapping[str, Any]], names: Mapping[str, Any]) -> str:
    """Messages rendered with a template. Raises jinja2.TemplateError if it fails or exceeds a limit."""
    size = _chars(names.get("tools")) + sum(map(_chars, messages))
    token = _BUDGET.set(budget := _Budget(_STEPS + size, _MOST_CHARS + 4 * size))
    pieces: list[str] = []
    try:
        own = [dict(message) for message in messages]
        for piece in _compiled(template).generate(messages=own, documents=None, **{"tools": None, **names}):
            pieces.append(budget.made(piece))
        budget.check_size(sum(map(len, pieces)))
        return "".join(pieces)
    except jinja2.TemplateError:
        raise
    except Exception as error:  # a template may divide by zero, recurse forever, ...
        raise jinja2.TemplateError(f"{type(error).__name__}: {error!s:.200}") from error
    finally:
        _BUDGET.reset(token)


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    """A template in the environment that transformers renders it in, watched."""
    # 0.8 s to import; processes that only read configuration never come here
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _Watched()
    known: Any = vars(_compile_jinja_template("").environment)
    vars(environment).update(known)
    environment.extensions = {name: own.bind(environment) for name, own in known["extensions"].items()}
    environment.filters = {name: _watched(name, own) for name, own in known["filters"].items()}
    environment.tests = known["tests"] | {
        name: _watched(name, own) for name, own in known["tests"].items() if name in _COMPARING
    }
    environment.globals = {name: own for name, own in known["globals"].items() if name != "lipsum"}
    return environment.from_string(template)


class _Watched(ImmutableSandboxedEnvironment):
    """Counts the steps of a template, and refuses operations that create huge values from short texts."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed: nodes.Template = _AddChecks().visit(super()._parse(source, name, filename))
        parsed.set_environment(self)
        return parsed

    def step(self, steps: int) -> None:
        _budget().spend(steps)

    def made(self, value: Any) -> Any:
        return _budget().made(value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            _check_product(left, right)
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MOST_BITS:
                raise jinja2.TemplateError("it creates a number that is too large")
        elif operator == "%" and isinstance(left, str):
            _check_call(operator, [left, right])
        return self.made(super().call_binop(context, operator, left, right))

    def call(self, context: Any, called: Any, /, *arguments: Any, **named: Any) -> Any:
        method = getattr(called, "__wrapped__", called)  # str.format, which the sandbox wraps
        owner = getattr(method, "__self__", None)
        if owner is self:  # `step` and `made`
            return called(*arguments)
        if isinstance(owner, (str, bytes)):
            _check_call(method.__name__, [owner, *arguments, *named.values()])
            self.step(len(owner) // _STEP_CHARS)
        self.step(1)
        return self.made(super().call(context, called, *arguments, **named))


class _AddChecks(NodeTransformer):
    """Adds calls of `step` to the body of every loop and macro, and of `made` around all output and joined text."""

    def generic_visit(self, node: nodes.Node, *arguments: Any, **named: Any) -> nodes.Node:
        super().generic_visit(node, *arguments, **named)
        if isinstance(node, _REPEATED):
            written = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
            step = _call(
                "step", nodes.Const((1 if isinstance(node, nodes.For) else 10) + written // _STEP_CHARS)
            )
            node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        elif isinstance(node, nodes.Output):
            node.nodes = [e if isinstance(e, nodes.TemplateData) else _call("made", e) for e in node.nodes]
        elif isinstance(node, nodes.Operand) and not isinstance(node.expr, nodes.Const):
            node.expr = _call("made", node.expr)
        elif isinstance(node, nodes.Concat) or (
            isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        ):
            return _call("made", node)
        return node


def _call(method: str, argument: nodes.Expr) -> nodes.Call:
    return nodes.Call(
        nodes.EnvironmentAttribute(method), [argument], [], None, None, lineno=argument.lineno or 1
    )


def _watched(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that counts its steps, and refuses to create a value that is too large."""

    @wraps(own)
    def checked(*arguments: Any, **named: Any) -> Any:
        budget = _budget()
        values = [*arguments, *named.values()]
        _check_call(name, values)
        budget.spend(1 + sum(len(value) for value in values if isinstance(value, _SIZED)) // _STEP_CHARS)
        return budget.made(own(*arguments, **named))

    return checked


def _check_call(name: str, arguments: Sequence[Any]) -> None:
    """Refuse a call of a filter or of a text's method whose result would be too large."""
    check_size = _budget().check_size
    texts = [value for value in arguments if isinstance(value, str)]
    if name in _FORMATTING and any(map(_LONG_WIDTH.search, texts[:1])):
        raise jinja2.TemplateError("it formats to a width that is too large")
    if name in _FORMATTING | _FILLING:  # at most one number for each character
        check_size((1 + sum(map(len, texts))) * max(_numbers(arguments), default=0) // 8)
    elif name == "replace" and len(texts) > 2:
        check_size(len(texts[0]) + texts[0].count(texts[1]) * len(texts[2]))
    elif name == "join":
        joint = max(map(len, texts), default=0)
        for value in arguments:
            if isinstance(value, (list, tuple)):
                check_size(sum(_size(entry) + joint for entry in value))


def _size(value: Any) -> int:
    """The approximate length of a value as text."""
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return len(value) if isinstance(value, _SIZED) else 1


def _chars(value: Any) -> int:
    """The number of characters in all texts of a value, including field names."""
    if isinstance(value, Mapping):
        return sum(len(str(name)) + _chars(entry) for name, entry in value.items())
    return len(value) if isinstance(value, str) else sum(map(_chars, value)) if isinstance(value, list) else 1


def _numbers(values: Iterable[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, int):
            yield abs(value)
        elif isinstance(value, (list, tuple)):
            yield from _numbers(value)


def _check_product(left: Any, right: Any) -> None:
    for count, value in ((left, right), (right, left)):
        if isinstance(count, int) and isinstance(value, _SIZED):
            _budget().check_size(len(value) * count)
