"""The options of a command as --help lists them, made of the fields of its models."""

import ast
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from armo_ray.cli.commands import SCORE_OPTIONS, Command, load
from armo_ray.options import Help, Options

_METAVARS = {int: "N", float: "X"}


class Option(NamedTuple):
    """One option of a command: the name and type of its field, and its text and place in --help."""

    name: str
    type: Any
    text: str
    help: Help
    is_list: bool
    required: bool
    shown: bool = True  # plan and evaluate take every option of score, and list the required ones

    @property
    def flag(self) -> str:
        return self.help.flag or "--" + self.name.replace("_", "-")

    @property
    def metavar(self) -> str:
        if typing.get_origin(self.type) is typing.Literal and not self.help.metavar:
            return f"{{{','.join(typing.get_args(self.type))}}}"
        return self.help.metavar or _METAVARS[self.type]


def options_of(command: Command) -> list[Option]:
    """The options in the order of --help: the required ones, its own, then those shared with other commands."""
    options = {option.name: option for kind in command.options for option in _fields(load(kind))}
    heading = command.score_options
    for option in _fields(load(SCORE_OPTIONS)) if heading else ():
        place = option.help._replace(group=heading) if option.required else option.help
        # evaluate scores with one model
        is_list = option.is_list and (heading == "required" or not option.help.several)
        options.setdefault(option.name, option._replace(help=place, is_list=is_list, shown=option.required))
    groups = list(dict.fromkeys(["required", heading, *(option.help.group for option in options.values())]))
    return sorted(
        options.values(), key=lambda option: (groups.index(option.help.group), not option.help.word)
    )


def _fields(kind: type[Options]) -> Iterator[Option]:
    """The options of a model, its own before those of its bases."""
    docstrings: dict[str, str] = {}
    for base in kind.__mro__[: kind.__mro__.index(Options)]:
        for name, docstring in _docstrings(base):
            docstrings.setdefault(name, docstring)
    for name, docstring in docstrings.items():
        field = kind.model_fields[name]
        (place,) = (entry for entry in field.metadata if isinstance(entry, Help))
        required = field.is_required()
        text = _text(docstring, None if required else field.default)
        is_list = place.several or typing.get_origin(field.annotation) in (tuple, Mapping)
        yield Option(name, _without_none(field.annotation), text, place, is_list, required)


def _docstrings(kind: type[Options]) -> Iterator[tuple[str, str]]:
    """The fields that a class declares, with their docstrings, by parsing its module once: pydantic takes longer."""
    tree = ast.parse(inspect.getsource(sys.modules[kind.__module__]))
    (body,) = (
        node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    )
    for field, docstring in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(docstring, ast.Expr):
            yield ast.unparse(field.target), ast.literal_eval(docstring.value)


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    (inner,) = (entry for entry in typing.get_args(kind) if entry is not types.NoneType)
    return typing.get_args(inner)[0] if typing.get_origin(inner) is typing.Annotated else inner


def _text(docstring: str, default: Any) -> str:
    """A text of --help: the docstring of the field, and its default if it has one."""
    text = " ".join(docstring.split()).removesuffix(".")
    if default is None or default is False or default in ((), {}):
        return text
    if default is True:
        default = "on"
    elif isinstance(default, tuple):
        default = ", ".join(default)
    return f"{text} (default: {default:g})" if isinstance(default, float) else f"{text} (default: {default})"
