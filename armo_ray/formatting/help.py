"""The layout of --help: at most 100 columns, with each option and its text on one line if they fit."""

import argparse
import textwrap
from collections.abc import Generator, Mapping

WIDTH = 100
_TEXT_COLUMN = 28


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Writes `--input URI...` and `--[no-]verify` instead of `--input URI [URI ...]` and `--verify, --no-verify`."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=_TEXT_COLUMN, width=WIDTH)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs in ("+", "*"):
            return f"{action.metavar or default_metavar}..."
        return super()._format_args(action, default_metavar)

    def _format_action(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._SubParsersAction):  # the commands, without a heading of their own
            return "".join(map(self._format_action, action._get_subactions()))
        return super()._format_action(action)

    def _iter_indented_subactions(self, action: argparse.Action) -> Generator[argparse.Action, None, None]:
        yield from action._get_subactions() if isinstance(action, argparse._SubParsersAction) else ()

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return f"--[no-]{action.option_strings[0].removeprefix('--')}"
        if action.nargs in ("+", "*") and not action.option_strings:
            return self._format_args(action, action.dest)
        return super()._format_action_invocation(action)


def closing(example: str, statuses: Mapping[int, str]) -> str:
    """The end of a help text: an example, and what the exit statuses mean, where they are told."""
    lines = ["example:", *(f"  {line}" for line in example.splitlines())]
    if statuses:
        lines += ["", "exit status:", *(f"  {status}  {meaning}" for status, meaning in statuses.items())]
    return "\n".join(lines)
