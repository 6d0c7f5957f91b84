"""The parser of the command line: every command with its words and flags. Imports nothing slow."""

import argparse
import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from armo_ray.cli.commands import COMMANDS, SCORE_OPTIONS, Command, load
from armo_ray.formatting.help import HelpFormatter, closing
from armo_ray.options import Help, Options
from armo_ray.version import __version__

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


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands, with the options of this one, or of every one: loading them takes the time."""
    parser = argparse.ArgumentParser(
        "armo-ray",
        usage="armo-ray COMMAND ...",
        description="Score conversations with reward models, and work with the scores.",
        epilog="armo-ray COMMAND --help lists the options of a command.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"armo-ray {__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND", prog="armo-ray"
    )
    for name, entry in COMMANDS.items():
        own = commands.add_parser(
            name,
            help=entry.summary.removesuffix("."),
            description=entry.summary
            + "\nAlso takes every option of armo-ray score." * bool(entry.score_options),
            formatter_class=HelpFormatter,
            add_help=False,
        )
        own.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        own.set_defaults(parser=own)
        if command in (None, name):
            _fill(own, entry)
    return parser


def _fill(parser: argparse.ArgumentParser, command: Command) -> None:
    """Give the parser of a command its options, in groups."""
    parser.epilog = closing(command.example, command.statuses)
    if not command.options:
        from armo_ray.bench.options import add_arguments

        add_arguments(parser)
        return
    options = options_of(command)
    names = {option.name for option in options}
    takes_toml, takes_words = not names.isdisjoint({"input", "scores"}), "scores" in names
    words = " ".join(_usage(options, takes_toml))
    parser.usage = f"{parser.prog} {command.usage or words}"
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in options:
        heading = option.help.group
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
            if takes_toml and not takes_words and heading == "required":
                config = "Options as a TOML file; flags override them"
                groups[heading].add_argument("config", nargs="?", metavar="CONFIG.toml", help=config)
        _add(groups[heading], option, takes_toml, command.words_optional)


def options_of(command: Command) -> list[Option]:
    """The options in the order of --help: the required ones, its own, then those shared with other commands."""
    options = {option.name: option for kind in command.options for option in _fields(load(kind))}
    heading = command.score_options
    for option in _fields(load(SCORE_OPTIONS)) if heading else ():
        place = option.help._replace(group=heading)
        # evaluate scores with one model
        is_list = option.is_list and (heading == "required" or not option.help.several)
        options.setdefault(option.name, option._replace(help=place, is_list=is_list, shown=option.required))
    groups = list(dict.fromkeys(["required", heading, *(option.help.group for option in options.values())]))
    return sorted(
        options.values(), key=lambda option: (groups.index(option.help.group), not option.help.word)
    )


def _fields(kind: type[Options]) -> Iterator[Option]:
    """The options of a model, its own before those of its bases."""
    names = dict.fromkeys(name for base in kind.__mro__ for name in inspect.get_annotations(base))
    for name in names:
        if (field := kind.model_fields.get(name)) is not None:
            (place,) = (entry for entry in field.metadata if isinstance(entry, Help))
            required = field.is_required()
            text = _text(field.description or "", None if required else field.default)
            is_list = place.several or typing.get_origin(field.annotation) in (tuple, Mapping)
            yield Option(name, _without_none(field.annotation), text, place, is_list, required)


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    (inner,) = (entry for entry in typing.get_args(kind) if entry is not types.NoneType)
    return typing.get_args(inner)[0] if typing.get_origin(inner) is typing.Annotated else inner


def _text(description: str, default: Any) -> str:
    """A text of --help: the docstring of the field, and its default if it has one."""
    text = " ".join(description.split()).removesuffix(".")
    if default is None or default is False or default in ((), {}):
        return text
    if isinstance(default, bool | tuple | float):
        default = (
            "on" if default is True else ", ".join(default) if isinstance(default, tuple) else f"{default:g}"
        )
    return f"{text} (default: {default})"


def _usage(options: Sequence[Option], takes_toml: bool) -> Iterator[str]:
    """The words, and the flags that are required."""
    if takes_toml:
        yield "[CONFIG.toml]"
    for option in options:
        value = f"{option.metavar}{'...' * option.is_list}" if option.type is not bool else ""
        if option.help.word:
            yield value if option.required else f"[{value}]"
        elif option.required:
            yield f"{option.flag} {value}"
    if not all(option.help.word for option in options):
        yield "[options]"


def _add(parser: argparse._ActionsContainer, option: Option, takes_toml: bool, words_optional: bool) -> None:
    """Add a flag or word; the model checks its value."""
    settings: dict[str, Any] = {"default": argparse.SUPPRESS}
    settings["help"] = option.text.replace("%", "%%") if option.shown else argparse.SUPPRESS
    if option.type is bool:
        # a file may have turned it on
        settings["action"] = argparse.BooleanOptionalAction if takes_toml else "store_true"
    else:
        settings["metavar"] = option.metavar
        if option.is_list:
            settings |= {"nargs": "+", "action": "extend"}
    if not option.help.word:
        parser.add_argument(option.flag, dest=option.name, **settings)
    elif option.is_list:
        settings |= {"nargs": "*" if words_optional else "+", "action": "store"}
        settings["help"] += "; CONFIG.toml holds options"
        parser.add_argument("words", **settings)
    else:
        parser.add_argument(option.name, **settings, nargs="?" if words_optional else None)
