"""The benchmark of one model: a table per workload on stdout, and all raw measurements in a JSON file."""

import json
import logging
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from armo_ray.bench import contenders, flops, measure, models, report, workloads
from armo_ray.bench.models import Subject
from armo_ray.bench.options import DEFAULTS, Settings, default_contenders, default_workloads
from armo_ray.bench.rounds import TIME_IS_OVER, Protocol, Record, attempt, take_turns
from armo_ray.bench.workloads import Group
from armo_ray.errors import ConfigError
from armo_ray.version import __version__

logger = logging.getLogger(__name__)


def benchmark(settings: Settings) -> dict[str, Any]:
    """Measure; print a table after each workload. Returns the content of the JSON.

    The JSON is written after every pass of a contender, so that a run that is killed keeps what it measured.
    """
    started, device = time.monotonic(), _device(settings.device)
    chosen = DEFAULTS[device.type] | {
        name: value for name, value in asdict(settings).items() if value is not None
    }
    names = default_workloads(settings, device.type)
    logger.info("%s on %s", ", ".join(names), device)
    subject = models.load(settings, chosen["dtype"], device)
    result = _header(subject, chosen, device)
    print(report.headline(result), flush=True)
    prepared = {
        name: _prepared(name, subject) for name in settings.contenders or default_contenders(device.type)
    }
    deadline = started + (settings.time_limit or math.inf)
    protocol = Protocol(chosen["rounds"], settings.seed, settings.reference, deadline)
    for name in names:
        if not protocol.allows():
            result["not_measured"].append(f"{name}: {TIME_IS_OVER}")
            continue
        workload = _measured(name, prepared, subject, settings, chosen, protocol, result)
        print("\n" + report.workload_table(workload), flush=True)
    _write(settings.json, result)
    print(f"\n{report.closing(result)}raw measurements: {settings.json}")
    return result


def _measured(
    name: str,
    prepared: dict[str, contenders.Contender | str],
    subject: Subject,
    settings: Settings,
    chosen: dict[str, Any],
    protocol: Protocol,
    result: dict[str, Any],
) -> dict[str, Any]:
    """Measure all contenders on a workload, which is added to the result."""
    groups = _groups(name, subject, settings, chosen)
    workload = {"name": name, **workloads.describe(groups), "floor_flops": _floor(subject, groups)}
    logger.info("%s: %d candidates, %d tokens", name, workload["candidates"], workload["tokens"])
    result["workloads"].append(workload)

    def keep(records: list[Record], rates: list[float]) -> None:
        rows = [asdict(record) for record in records]
        workload.update(matmul_flops=rates, contenders=[row | row.pop("facts") for row in rows])
        report.derive(workload)
        _write(settings.json, result)

    keep(*take_turns(prepared, subject.model, groups, protocol, keep))
    return workload


def _write(path: Path, result: dict[str, Any]) -> None:
    """Replace the file at once: the old content stays readable if this is interrupted."""
    draft = path.with_name(path.name + ".draft")
    draft.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    draft.replace(path)


def show(path: Path) -> None:
    """Print the README's table from the JSON of an earlier benchmark. Raises ConfigError if it is not one."""
    try:
        table = report.readme_table(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, LookupError) as error:
        raise ConfigError(f"{path}: not the JSON of a benchmark: {error!r}") from error
    print(table)


def _device(name: str | None) -> torch.device:
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name}: torch finds no CUDA device on this machine")
    if device.type == "cpu":
        torch.set_num_threads(1)
    return device


def _prepared(name: str, subject: Subject) -> contenders.Contender | str:
    """The contender, or the reason why it cannot be measured."""
    contender, reason = attempt(lambda: contenders.prepare(name, subject.model))
    if contender is None:
        logger.info("%s: %s", name, reason)
    return contender or reason or ""


def _groups(name: str, subject: Subject, settings: Settings, chosen: dict[str, Any]) -> Sequence[Group]:
    if name != "shards":
        return workloads.synthetic(
            name, subject.vocabulary, chosen["candidates"], settings.seed, chosen["length_scale"]
        )
    assert subject.path is not None, "settings_of refuses shards for a shape"
    positions = subject.model.backbone.config.max_position_embeddings
    return workloads.from_shards(settings.input, subject.path, chosen["candidates"], positions)


def _floor(subject: Subject, groups: Sequence[Group]) -> int:
    sequences = workloads.sequences_of(groups)
    reads = [subject.model.head.positions(ids) for ids in sequences]
    return flops.floor(flops.shape_of(subject.model.backbone), sequences, reads)


def _header(subject: Subject, chosen: dict[str, Any], device: torch.device) -> dict[str, Any]:
    budget = subject.model.options.token_budget
    options = sys.argv[2:] if sys.argv[1:2] == ["bench"] else sys.argv[1:]
    return {
        "command": shlex.join(["armo-ray", "bench", *options]),
        "model": subject.name,
        "dtype": chosen["dtype"],
        "device": str(device),
        "hardware": _hardware(device),
        "versions": {
            "armo-ray": __version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
        "clock": measure.CLOCKS[device.type],
        "layer_matmul_flops": measure.layer_flops(subject.model.backbone.layers[0], budget),
        "token_budget": budget,
        "rounds": chosen["rounds"],
        "length_scale": chosen["length_scale"],
        "seed": chosen["seed"],
        "shape": flops.shape_of(subject.model.backbone)._asdict(),
        "workloads": [],
        "not_measured": [],
    }


def _hardware(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {"name": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return {"name": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
