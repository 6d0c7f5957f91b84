"""The command line. Parses, checks, and only then imports what is slow."""

import argparse
import importlib
import logging
import sys
import time
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from armo_ray import __version__
from armo_ray.bench.arguments import add_arguments, execute
from armo_ray.config import Options, ScoreConfig, load_configs, load_options
from armo_ray.curation.options import (
    CurationOptions,
    FilterOptions,
    LabelOptions,
    MineOptions,
    ReweighOptions,
)
from armo_ray.errors import ConfigError
from armo_ray.families import FAMILIES
from armo_ray.interrupts import OutOfTime, limited, stop_on_sigterm

COMPLETE, FAILED, MISUSED, TOO_MANY_REJECTS, OUT_OF_TIME = 0, 1, 2, 3, 5

_BACKBONES = ("llama", "mistral", "qwen2", "qwen3", "gemma2")
_EXIT_STATUS = """exit status: 0 complete; 1 failed or stopped, run the same command to go on;
2 bad usage or configuration, nothing was done; 3 complete, but more than --max-reject-fraction was rejected;
5 stopped by --max-runtime, run the same command to go on"""

# Commands that make datasets from scores: the module curation.<name> has run(options).
_CURATION: dict[str, tuple[type[CurationOptions], str]] = {
    "mine": (MineOptions, "preference pairs from scores"),
    "label": (LabelOptions, "labels for distillation, reward models, SFT and GRPO"),
    "filter": (FilterOptions, "the part of scores that passes some rules"),
    "reweigh": (ReweighOptions, "other scores from the stored rewards and gates"),
}

_GO_ON = "what is committed stays, run it again to go on"

logger = logging.getLogger("armo_ray")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    args, unknown = _parser().parse_known_args(argv)
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        status: int = args.run(args)
        return status
    except ConfigError as error:
        print(f"armo-ray {args.command}: error: {error}", file=sys.stderr)
        return MISUSED
    except (RuntimeError, OSError) as error:
        print(f"armo-ray {args.command}: failed: {error}", file=sys.stderr)
        return FAILED
    except OutOfTime:
        print(
            f"armo-ray {args.command}: --max-runtime is over; run it again to go on",
            file=sys.stderr,
        )
        return OUT_OF_TIME
    except KeyboardInterrupt:
        print(
            f"armo-ray {args.command}: stopped; "
            + ("nothing is left" if args.command in _CURATION else _GO_ON),
            file=sys.stderr,
        )
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("armo-ray", description="Score conversations with a reward model.")
    parser.add_argument("--version", action="version", version=f"armo-ray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    score = commands.add_parser("score", help="score shards into partitioned Parquet", epilog=_EXIT_STATUS)
    score.add_argument(
        "config", nargs="?", metavar="CONFIG.toml", help="options as a file; flags override it"
    )
    for name, field in ScoreConfig.model_fields.items():
        _add_option(score, name, field, several=name in ("model", "revision"))
    score.set_defaults(run=_score, parser=score)
    for name, (kind, told) in _CURATION.items():
        _add_curation(commands.add_parser(name, help=told), kind)
    verify = commands.add_parser("verify", help="check a finished output against its manifest")
    verify.add_argument("output", metavar="OUT", help="directory or URI that score wrote")
    verify.set_defaults(run=_verify, parser=verify)
    tiny = commands.add_parser("tiny-model", help="write a tiny random reward model for trying things")
    tiny.add_argument("directory", metavar="DIR")
    tiny.add_argument("--seed", type=int, default=0, help="the same seed gives the same weights (default: 0)")
    tiny.add_argument("--family", choices=FAMILIES, default="armorm", help="kind of model (default: armorm)")
    tiny.add_argument(
        "--backbone", choices=_BACKBONES, default="llama", help="kind of decoder (default: llama)"
    )
    tiny.set_defaults(run=_tiny_model, parser=tiny)
    bench = commands.add_parser("bench", help="measure the engine against plain transformers code")
    add_arguments(bench)
    bench.set_defaults(run=execute, parser=bench)
    return parser


def _add_curation(parser: argparse.ArgumentParser, kind: type[CurationOptions]) -> None:
    parser.add_argument(
        "words",
        nargs="+",
        metavar="OUT",
        help="complete outputs of armo-ray score, of one model; before them, options as a TOML file",
    )
    for name, field in kind.model_fields.items():
        if name != "scores":
            _add_option(parser, name, field)
    parser.set_defaults(run=_curate, parser=parser)


def _add_option(parser: argparse.ArgumentParser, name: str, field: FieldInfo, several: bool = False) -> None:
    """A flag for a field of the configuration; its value is checked there."""
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": _help(field)}
    kind = field.annotation
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["metavar"] = "{" + ",".join(typing.get_args(kind)) + "}" if _is_choice(kind) else name.upper()
        if several or typing.get_origin(kind) in (tuple, Mapping):
            options["nargs"] = "+"
            options["action"] = "extend"
    parser.add_argument("--" + name.replace("_", "-"), **options)


def _is_choice(kind: Any) -> bool:
    return typing.get_origin(kind) is typing.Literal


def _help(field: FieldInfo) -> str:
    default = (
        ""
        if field.is_required() or field.default in (None, (), {}, False)
        else f" (default: {field.default})"
    )
    return f"{field.description}{default}".replace("%", "%%")


def _score(args: argparse.Namespace) -> int:
    given = _given(args, ScoreConfig)
    began, configs = time.monotonic(), load_configs(args.config, given, **_reading(args.config))
    from armo_ray.plan import prepare

    stop_on_sigterm()
    prepared = [(*prepare(config), config) for config in configs]
    from armo_ray import pipeline

    limit, statuses = configs[0].max_runtime, []
    with limited(limit and limit - (time.monotonic() - began)):
        for job, spans, config in prepared:
            totals, judged = pipeline.run(job, spans, config)
            _summarize(totals, config)
            statuses.append(_judge(judged, config))
    return max(statuses)


def _given(args: argparse.Namespace, kind: type[Options]) -> dict[str, Any]:
    """The flags that were given."""
    given = {name: value for name, value in vars(args).items() if name in kind.model_fields}
    lists = (value for value in given.values() if isinstance(value, list))
    if swallowed := [word for words in lists for word in words if word.endswith(".toml")]:
        raise ConfigError(f"{swallowed[0]}: put the TOML file before the flags")
    return given


def _reading(file: str | None) -> dict[str, Any]:
    """How a TOML file is read that lies in a storage."""
    if file is None or "://" not in file:
        return {}
    from armo_ray.storage.filesystem import read_text

    return {"read": read_text}


def _curate(args: argparse.Namespace) -> int:
    kind, _ = _CURATION[args.command]
    given = _given(args, kind)
    files = [word for word in args.words if word.endswith(".toml")]
    if len(files) > 1:
        raise ConfigError(f"{files[1]}: one TOML file is enough")
    if outputs := [word for word in args.words if word not in files]:
        given["scores"] = outputs
    file = files[0] if files else None
    options = load_options(kind, file, given, **_reading(file))
    command = importlib.import_module(f"armo_ray.curation.{args.command}")
    stop_on_sigterm()
    command.run(options)
    return COMPLETE


def _summarize(totals: Mapping[str, Any], config: ScoreConfig) -> None:
    rejected = sum(totals["rejected"].values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(totals["rejected"].items()))
    logger.info(
        "%s: %d of %d candidates scored, %d rejected%s",
        config.output,
        totals["scored"],
        totals["candidates"],
        rejected,
        f" ({reasons})" if reasons else "",
    )


def _judge(totals: Mapping[str, Any], config: ScoreConfig) -> int:
    """The exit status, by the shards of this run."""
    # a lost shard is one reject, whatever it held: it weighs as a shard
    unreadable = totals["rejected"].get("unreadable_shard", 0) / max(totals["shards"], 1)
    fraction = max(sum(totals["rejected"].values()) / max(totals["candidates"], 1), unreadable)
    if fraction <= config.max_reject_fraction:
        return COMPLETE
    logger.error(
        "rejects are %.2f %%, more than --max-reject-fraction %g: see %s/rejects",
        100 * fraction,
        config.max_reject_fraction,
        config.output,
    )
    return TOO_MANY_REJECTS


def _verify(args: argparse.Namespace) -> int:
    from armo_ray.storage.verify import verify_output

    counts, faults = verify_output(args.output)
    for fault in faults:
        print(fault)
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    found = f"{len(faults)} fault{'s' * (len(faults) > 1)}" if faults else "whole"
    print(f"{args.output}: {told}: {found}")
    return FAILED if faults else COMPLETE


def _tiny_model(args: argparse.Namespace) -> int:
    from armo_ray.engine.tiny_families import write_family

    directory = Path(args.directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} exists and is not an empty directory")
    write_family(directory, args.family, args.backbone, args.seed)
    print(f"{args.directory}: a random model of the family {args.family}, 2 layers; its scores mean nothing")
    return COMPLETE


if __name__ == "__main__":
    sys.exit(main())
