"""The command line. Parses, checks, and only then imports what is slow."""

import argparse
import importlib
import json
import logging
import sys
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from armo_ray import __version__
from armo_ray.bench.arguments import add_arguments, execute
from armo_ray.config import Options, ScoreConfig, load_configs, load_options
from armo_ray.curation.options import (
    CompareOptions,
    EvaluateOptions,
    FilterOptions,
    LabelOptions,
    MineOptions,
    ReweighOptions,
    ScoresOptions,
)
from armo_ray.errors import ConfigError
from armo_ray.estimate.options import PlanOptions
from armo_ray.families import FAMILIES
from armo_ray.interrupts import OutOfTime, limited, stop_on_sigterm
from armo_ray.report.options import ReportOptions

COMPLETE, FAILED, MISUSED, TOO_MANY_REJECTS, DRIFTED, OUT_OF_TIME = range(6)

_BACKBONES = ("llama", "mistral", "qwen2", "qwen3", "gemma2")
_EXIT_STATUS = """exit status: 0 complete; 1 failed or stopped, run the same command to go on;
2 bad usage or configuration, nothing was done; 3 complete, but more than --max-reject-fraction was rejected;
5 stopped by --max-runtime, run the same command to go on"""

_REPORT_STATUS = """exit status: 0 written; 1 failed; 2 bad usage or configuration; 4 written, and
with --against a column is over --max-psi or --max-ks"""

# Commands that read scores: the module curation.<name> has run(options).
_CURATION: dict[str, tuple[type[ScoresOptions], str]] = {
    "mine": (MineOptions, "preference pairs from scores"),
    "label": (LabelOptions, "labels for distillation, reward models, SFT and GRPO"),
    "filter": (FilterOptions, "the part of scores that passes some rules"),
    "reweigh": (ReweighOptions, "other scores from the stored rewards and gates"),
    "evaluate": (EvaluateOptions, "how often scores are right: benchmarks, and labelled pairs of your own"),
    "compare": (CompareOptions, "how two outputs over the same rows differ"),
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
            + ("nothing is left" if args.run in (_curate, _report) else _GO_ON),
            file=sys.stderr,
        )
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("armo-ray", description="Score conversations with a reward model.")
    parser.add_argument("--version", action="version", version=f"armo-ray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    score = commands.add_parser("score", help="score shards into partitioned Parquet", epilog=_EXIT_STATUS)
    _add_score(score, _score)
    plan = commands.add_parser(
        "plan", help="what score would do, how long it would take and cost; takes its options"
    )
    _add_score(plan, _plan)
    for name, field in PlanOptions.model_fields.items():
        _add_option(plan, name, field)
    plan.add_argument("--json", action="store_true", help="print one JSON object for each model instead")
    for name, (kind, told) in _CURATION.items():
        _add_curation(commands.add_parser(name, help=told), kind)
    _add_scoring(commands.choices["evaluate"])
    report = commands.add_parser(
        "report", help="a page about outputs, complete or not, and their drift", epilog=_REPORT_STATUS
    )
    _add_curation(report, ReportOptions, "outputs of armo-ray score")
    report.set_defaults(run=_report)
    _add_verify(commands.add_parser("verify", help="check a finished output, or a model on this machine"))
    _add_explain(
        commands.add_parser("explain", help="trace one row: its tokens, and what its score is made of")
    )
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


def _add_score(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG.toml", help="options as a file; flags override it"
    )
    for name, field in ScoreConfig.model_fields.items():
        _add_option(parser, name, field, several=name in ("model", "revision"))
    parser.set_defaults(run=run, parser=parser)


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", help="directory or URI that score wrote, complete or not")
    parser.add_argument("row", metavar="ROW_ID", help="as in the column row_id, or highest, lowest or random")
    parser.add_argument("--model", help="where the model's tokenizer is now; default: where the run had it")
    parser.add_argument(
        "--all-tokens", action="store_true", help="list every token, not those around the marks"
    )
    parser.set_defaults(run=_explain, parser=parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", nargs="?", help="directory or URI that score wrote")
    parser.add_argument("--model", help="checkpoint to try out instead: a directory, its URI, or a hub id")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--dtype", default="bfloat16", help="type of the backbone (default: bfloat16)")
    parser.add_argument("--family", choices=FAMILIES, help="kind of model; default: what its tensors tell")
    parser.add_argument("--device", help="as torch names it; default: cuda where there is one")
    parser.add_argument("--record", metavar="FILE", help="write the model's values there, for --against")
    parser.add_argument("--against", metavar="FILE", help="compare with values that --record wrote")
    parser.set_defaults(run=_verify, parser=parser)


def _add_curation(
    parser: argparse.ArgumentParser,
    kind: type[ScoresOptions],
    outputs: str = "complete outputs of armo-ray score",
) -> None:
    parser.add_argument(
        "words",
        nargs="*" if kind is EvaluateOptions else "+",
        metavar="OUT",
        help=f"{outputs}; before them, options as a TOML file",
    )
    for name, field in kind.model_fields.items():
        if name != "scores":
            _add_option(parser, name, field)
    parser.set_defaults(run=_curate, parser=parser)


def _add_scoring(evaluate: argparse.ArgumentParser) -> None:
    """The options of score, of which evaluate takes all but its output."""
    group = evaluate.add_argument_group(
        "to score first",
        "with --input and --model instead of OUT; OUTPUT then holds the scores too, and is resumed",
    )
    for name, field in ScoreConfig.model_fields.items():
        if name not in EvaluateOptions.model_fields:
            _add_option(group, name, field)
    evaluate.set_defaults(run=_evaluate)


def _add_option(
    parser: argparse._ActionsContainer, name: str, field: FieldInfo, several: bool = False
) -> None:
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
    began, given = time.monotonic(), _given(args, ScoreConfig)
    return _score_all(load_configs(args.config, given, **_reading(args.config)), began)


def _score_all(configs: Sequence[ScoreConfig], began: float) -> int:
    """Score with each configuration, all of which are checked first."""
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


def _plan(args: argparse.Namespace) -> int:
    options = load_options(PlanOptions, None, _given(args, PlanOptions))
    configs = load_configs(args.config, _given(args, ScoreConfig), **_reading(args.config))
    from armo_ray.estimate.estimate import estimate
    from armo_ray.estimate.show import lines

    for config in configs:
        told = estimate(config, options)
        print(json.dumps(told) if args.json else "\n".join(lines(told)), flush=True)
    return COMPLETE


def _evaluate(args: argparse.Namespace) -> int:
    """The tables of an output, or of the one that the options of score describe."""
    began, given = time.monotonic(), _given(args, ScoreConfig)
    output = given.pop("output", None)
    if not given and not args.words:
        raise ConfigError("give outputs of armo-ray score; or --input, --model and --output, to score first")
    if not given:
        return _curate(args)
    if args.words:
        raise ConfigError(
            f"{args.words[0]}: give outputs of armo-ray score, or --input and --model, not both"
        )
    if output is None:
        raise ConfigError("--output: missing, the scores and tables need a place")
    options = load_options(
        EvaluateOptions, None, {**_given(args, EvaluateOptions), "scores": f"{output}/scored"}
    )
    from armo_ray.curation import benchmark_files, evaluate

    evaluate.check(options, str(given.get("model")))
    status = _score_all([benchmark_files.scoring(options, given, output)], began)
    evaluate.run(options.model_copy(update={"output": f"{output}/tables"}), replace=True)
    return status


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
    options = _of_words(args, kind)
    command = importlib.import_module(f"armo_ray.curation.{args.command}")
    stop_on_sigterm()
    command.run(options)
    return COMPLETE


def _report(args: argparse.Namespace) -> int:
    options = _of_words(args, ReportOptions)
    from armo_ray.report import command

    stop_on_sigterm()
    return DRIFTED if command.run(options) else COMPLETE


def _of_words(args: argparse.Namespace, kind: type[Options]) -> Options:
    """The options of a command whose words are a TOML file, if any, and outputs."""
    given = _given(args, kind)
    files = [word for word in args.words if word.endswith(".toml")]
    if len(files) > 1:
        raise ConfigError(f"{files[1]}: one TOML file is enough")
    if outputs := [word for word in args.words if word not in files]:
        given["scores"] = outputs
    file = files[0] if files else None
    return load_options(kind, file, given, **_reading(file))


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
    if (args.output is None) == (args.model is None):
        raise ConfigError("give an output to check, or --model to try out a model")
    if args.model is not None:
        return _verify_model(args)
    if args.revision or args.family or args.device or args.record or args.against:
        raise ConfigError("--revision, --family, --device, --record and --against go with --model")
    from armo_ray.storage.verify import verify_output

    counts, faults = verify_output(args.output)
    for fault in faults:
        print(fault)
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    found = f"{len(faults)} fault{'s' * (len(faults) > 1)}" if faults else "whole"
    print(f"{args.output}: {told}: {found}")
    return FAILED if faults else COMPLETE


def _explain(args: argparse.Namespace) -> int:
    from armo_ray.explain.find import find
    from armo_ray.explain.show import lines

    print("\n".join(lines(find(args.output, args.row), args.model, args.all_tokens)))
    return COMPLETE


def _verify_model(args: argparse.Namespace) -> int:
    from armo_ray.preflight.verify import read_record, report, verify_model

    against = None if args.against is None else read_record(args.against)
    checks, record = verify_model(args.model, args.revision, args.dtype, args.device, args.family, against)
    print(report(checks))
    if args.record is not None and record:
        Path(args.record).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    failed = sum(not check.passed for check in checks)
    print(f"{args.model}: {f'{failed} checks failed' if failed else 'fit to score with'}")
    return FAILED if failed else COMPLETE


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
