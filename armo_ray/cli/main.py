"""The command line: parses and checks options, and only then imports what is slow."""

import argparse
import gc
import logging
import os
import select
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from armo_ray import lean
from armo_ray.cli.commands import COMMANDS, Command, load
from armo_ray.cli.parser import build_parser
from armo_ray.errors import ConfigError
from armo_ray.exit_status import COMPLETE, FAILED, MISUSED, OUT_OF_TIME
from armo_ray.signals import OutOfTime, stop_on_sigterm

if TYPE_CHECKING:
    from armo_ray.options import Given


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; without `argv` that of this process, which may end at once."""
    if argv is not None:
        return _main(argv, is_program=False)
    gc.disable()  # until all is imported: that is no garbage
    status = _main(sys.argv[1:], is_program=True)
    lean.end(status)
    return status


def _main(argv: Sequence[str], is_program: bool) -> int:
    args = _parse(argv)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    program, command = f"armo-ray {args.command}", COMMANDS[args.command]
    stop_on_sigterm()
    try:
        status = _run(program, command, args, is_program)
        sys.stdout.flush()
        return status
    except ConfigError as error:
        return _end(program, f"error: {error}", MISUSED)
    except (RuntimeError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _is_closed(sys.stdout):
            return FAILED
        return _end(program, f"failed: {error}", FAILED)
    except OutOfTime as error:
        return _end(program, f"{str(error) or '--max-runtime is over'}; run it again to go on", OUT_OF_TIME)
    except KeyboardInterrupt:
        left = "what is committed stays, run it again to go on" if command.resumes else "nothing is left"
        return _end(program, f"stopped; {left}", FAILED)


def _end(program: str, message: str, status: int) -> int:
    print(f"{program}: {message}", file=sys.stderr)
    return status


def _is_closed(stream: TextIO) -> bool:
    """Whether the reader of the stream has closed the pipe, as `head` does. If so, later output is discarded."""
    pipe = select.poll()
    pipe.register(stream.fileno(), 0)
    if not pipe.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return True


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The words and flags. Exits with a message and the usage if they are not those of the command."""
    command = next((word for word in argv if not word.startswith("-")), "")
    args, unknown = build_parser(command).parse_known_args(argv)
    if unknown:
        from armo_ray.options import describe_renamed

        flag = unknown[0].partition("=")[0]
        renamed = describe_renamed(flag)
        args.parser.error(f"{flag}: {renamed}" if renamed else f"unrecognized arguments: {' '.join(unknown)}")
    return args


def _run(program: str, command: Command, args: argparse.Namespace, is_program: bool) -> int:
    """Check the options and run the command."""
    from armo_ray.cluster import watchdog

    watchdog.command = program
    given: Any = args
    if command.options:
        given = _given(args)
    if command.options and not command.checks:
        from armo_ray.options import load_options

        (kind,) = command.options
        given = load_options(load(kind), given.file, given.values)
        if is_program:
            lean.leave_pandas_out()
    function = load(command.run)
    if is_program:
        gc.enable()
    return function(given) or COMPLETE


def _given(args: argparse.Namespace) -> "Given":
    """The values of flags and words, with the TOML file apart. Raises ConfigError."""
    from armo_ray.options import Given

    values = {name: value for name, value in vars(args).items() if name not in ("command", "parser")}
    words, config = values.pop("words", []), values.pop("config", None)
    lists = (value for value in values.values() if isinstance(value, list))
    if taken := [word for words in lists for word in words if word.endswith(".toml")]:
        raise ConfigError(f"{taken[0]}: put the TOML file before the flags")
    files = [word for word in words if word.endswith(".toml")] + ([config] if config else [])
    if len(files) > 1:
        raise ConfigError(f"{files[1]}: only one TOML file may be given")
    if outputs := [word for word in words if word not in files]:
        values["scores"] = outputs
    return Given(files[0] if files else None, values)
