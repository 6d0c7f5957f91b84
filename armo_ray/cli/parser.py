"""The parser of the command line: every command with its words and flags. Imports nothing slow."""

import argparse
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from armo_ray.cli.commands import COMMANDS, Command
from armo_ray.formatting.help import HelpFormatter, closing
from armo_ray.version import __version__

if TYPE_CHECKING:
    from armo_ray.cli.flags import Option


@cache
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
    from armo_ray.cli.flags import options_of  # pydantic

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


def _usage(options: Sequence["Option"], takes_toml: bool) -> Iterator[str]:
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


def _add(
    parser: argparse._ActionsContainer, option: "Option", takes_toml: bool, words_optional: bool
) -> None:
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
        parser.add_argument(
            option.name, **settings, nargs="?" if words_optional or not option.required else None
        )
