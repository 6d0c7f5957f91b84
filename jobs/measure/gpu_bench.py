"""What the stages of `jobs.measure.gpu` share."""

import gc
import os
import subprocess
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jobs.measure.gpu import ROOT
from jobs.measure.gpu_results import append

if TYPE_CHECKING:
    from armo_ray.bench.models import Subject
    from armo_ray.bench.workloads import Group
    from armo_ray.engine import RewardModel

WORKS = {"pairs": 128, "rollouts-8": 128, "long-prompts": 64}  # candidates
TRIAL_WORKS = dict.fromkeys(WORKS, 16)


class UnableError(Exception):
    """The machine lacks what a stage needs."""


class Bench:
    """What stages share: where results go, the time that is left, and the model, which is made on first use."""

    def __init__(self, out: Path, deadline: float, wheels: Path | None, dry: bool) -> None:
        self.out, self.deadline, self.wheels, self.dry = out, deadline, wheels, dry
        self.device = torch.device("cpu" if dry else "cuda")
        if dry:
            torch.set_num_threads(1)
        self.name = "cpu" if dry else torch.cuda.get_device_name()
        self.shape = "tiny" if dry else "llama3-8b"
        self.stage = ""

    def left(self) -> float:
        """Seconds that remain."""
        return self.deadline - time.monotonic()

    def say(self, **facts: Any) -> None:
        """Store a line for the current stage."""
        append(self.out, self.stage, device=self.name, **facts)

    @cached_property
    def subject(self) -> "Subject":
        """The model of the 8B shape with random weights."""
        from armo_ray.bench import models  # takes seconds, and the first stages do not need it
        from armo_ray.bench.options import Settings

        return models.load(Settings(shape=self.shape), "bfloat16", self.device)

    @property
    def model(self) -> "RewardModel":
        """The model, which shares prompts and is not compiled."""
        return self.subject.model

    @cached_property
    def works(self) -> "dict[str, list[Group]]":
        """Prompt groups by workload."""
        from armo_ray.bench import workloads

        scale, sizes = (0.1, TRIAL_WORKS) if self.dry else (1.0, WORKS)
        vocabulary = self.subject.vocabulary
        return {
            name: workloads.synthetic(name, vocabulary, count, length_scale=scale)
            for name, count in sizes.items()
        }

    def release(self) -> None:
        """Free the model's memory."""
        self.__dict__.pop("subject", None)
        self.empty()

    def empty(self) -> None:
        """Free memory that nothing refers to."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def sync(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def command(self, name: str, command: Sequence[str], limit: float, **environment: str) -> tuple[int, str]:
        """Run a command in the checkout's root. Returns its status, 124 if it ran out of time, and its output.

        The output is also kept in the results folder, as NAME.txt.
        """
        file = self.out / f"{name}.txt"
        with file.open("wb") as output:
            try:
                status = subprocess.run(
                    command,
                    cwd=ROOT,
                    env={**os.environ, **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=max(1, min(limit, self.left() - 2)),
                ).returncode
            except subprocess.TimeoutExpired:
                status = 124
        return status, file.read_text("utf-8", "replace")
