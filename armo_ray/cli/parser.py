"""The grammar of the command line: every command, its words and its flags. Imports nothing that is slow."""

import argparse
import typing
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from armo_ray.bench.options import add_arguments
from armo_ray.compare.options import CompareOptions
from armo_ray.curate.options import FilterOptions, LabelOptions, MineOptions, ReweighOptions
from armo_ray.evaluate.options import EvaluateOptions
from armo_ray.model.families import FAMILIES
from armo_ray.outputs.options import ScoresOptions
from armo_ray.plan.options import PlanOptions
from armo_ray.report.options import ReportOptions
from armo_ray.score.config import ScoreConfig
from armo_ray.version import __version__

_BACKBONES = ("llama", "mistral", "qwen2", "qwen3", "gemma2")
_EXIT_STATUS = """exit status: 0 complete; 1 failed or stopped, run the same command to go on;
2 bad usage or configuration, nothing was done; 3 complete, but more than --max-reject-fraction was rejected;
5 stopped by --max-runtime, run the same command to go on"""

_REPORT_STATUS = """exit status: 0 written; 1 failed; 2 bad usage or configuration; 4 written, and
with --against a column is over --max-psi or --max-ks"""

# Commands that read scores: the module curation.<name> has run(options).
CURATION: dict[str, tuple[type[ScoresOptions], str]] = {
    "mine": (MineOptions, "preference pairs from scores"),
    "label": (LabelOptions, "labels for distillation, reward models, SFT and GRPO"),
    "filter": (FilterOptions, "the part of scores that passes some rules"),
    "reweigh": (ReweighOptions, "other scores from the stored rewards and gates"),
    "evaluate": (EvaluateOptions, "how often scores are right: benchmarks, and labelled pairs of your own"),
    "compare": (CompareOptions, "how two outputs over the same rows differ"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("armo-ray", description="Score conversations with a reward model.")
    parser.add_argument("--version", action="version", version=f"armo-ray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    score = commands.add_parser("score", help="score shards into partitioned Parquet", epilog=_EXIT_STATUS)
    _add_score(score)
    plan = commands.add_parser(
        "plan", help="what score would do, how long it would take and cost; takes its options"
    )
    _add_score(plan)
    for name, field in PlanOptions.model_fields.items():
        _add_option(plan, name, field)
    plan.add_argument("--json", action="store_true", help="print one JSON object for each model instead")
    for name, (kind, told) in CURATION.items():
        _add_curation(commands.add_parser(name, help=told), kind)
    _add_scoring(commands.choices["evaluate"])
    report = commands.add_parser(
        "report", help="a page about outputs, complete or not, and their drift", epilog=_REPORT_STATUS
    )
    _add_curation(report, ReportOptions, "outputs of armo-ray score")
    _add_verify(commands.add_parser("verify", help="check a finished output, or a model on this machine"))
    _add_explain(
        commands.add_parser("explain", help="trace one row: its tokens, and what its score is made of")
    )
    layouts = commands.add_parser("layouts", help="the layouts of public data sets, with an example row each")
    layouts.add_argument("name", metavar="NAME", nargs="?", help="one of them, in full")
    tiny = commands.add_parser("tiny-model", help="write a tiny random reward model for trying things")
    tiny.add_argument("directory", metavar="DIR")
    tiny.add_argument("--seed", type=int, default=0, help="the same seed gives the same weights (default: 0)")
    tiny.add_argument("--family", choices=FAMILIES, default="armorm", help="kind of model (default: armorm)")
    tiny.add_argument(
        "--backbone", choices=_BACKBONES, default="llama", help="kind of decoder (default: llama)"
    )
    bench = commands.add_parser("bench", help="measure the engine against plain transformers code")
    add_arguments(bench)
    for command in commands.choices.values():
        command.set_defaults(parser=command)
    return parser


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG.toml", help="options as a file; flags override it"
    )
    for name, field in ScoreConfig.model_fields.items():
        _add_option(parser, name, field, several=name in ("model", "revision"))


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", help="directory or URI that score wrote, complete or not")
    parser.add_argument(
        "row", metavar="ROW_ID", help="as in the column row_id, or highest, lowest, random or rejected"
    )
    parser.add_argument("--model", help="where the model's tokenizer is now; default: where the run had it")
    parser.add_argument(
        "--all-tokens", action="store_true", help="list every token, not those around the marks"
    )


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", nargs="?", help="directory or URI that score wrote")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="delete what is damaged in OUT, so that the same armo-ray score command does it again",
    )
    parser.add_argument("--model", help="checkpoint to try out instead: a directory, its URI, or a hub id")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--dtype", help="type of the backbone (default: bfloat16)")
    parser.add_argument("--family", choices=FAMILIES, help="kind of model; default: what its tensors tell")
    parser.add_argument("--device", help="as torch names it; default: cuda where there is one")
    parser.add_argument("--record", metavar="FILE", help="write the model's values there, for --against")
    parser.add_argument("--against", metavar="FILE", help="compare with values that --record wrote")


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


def _add_scoring(evaluate: argparse.ArgumentParser) -> None:
    """The options of score, of which evaluate takes all but its output."""
    group = evaluate.add_argument_group(
        "to score first",
        "with --input and --model instead of OUT; OUTPUT then holds the scores too, and is resumed",
    )
    for name, field in ScoreConfig.model_fields.items():
        if name not in EvaluateOptions.model_fields:
            _add_option(group, name, field)


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
