"""The memory that the engine uses, and what it does when memory runs out. What is measured has its own process."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from armo_ray.engine.weights import read_ahead
from armo_ray.tiny.armorm import write_tiny_model
from tests.support.paths import ROOT

COMMON = """
import logging, re, resource, sys
import numpy as np
import torch
from armo_ray.engine import RewardModel

torch.set_num_threads(1)
logging.basicConfig(format="%(message)s", stream=sys.stdout)


def kilobytes(file, name):
    return int(re.search(rf"^{name}:\\s+(\\d+) kB", open(f"/proc/self/{file}").read(), re.M)[1])


def group(pattern, prompt, *answers):
    rng = np.random.default_rng(prompt)
    return [*rng.integers(0, 500, prompt), *pattern], [rng.integers(0, 500, n) for n in answers]


def limit(mebibytes):
    now = kilobytes("status", "VmSize") * 1024
    resource.setrlimit(resource.RLIMIT_AS, (now + (mebibytes << 20), -1))
"""


def printed(code: str, model: Path) -> list[str]:
    """The lines that a new process prints."""
    script = f"{COMMON}\nMODEL = {str(model)!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def write_wide_model(path: Path, num_layers: int) -> Path:
    """About 9 million weights per layer and 40 kB of activations per token."""
    write_tiny_model(path, hidden_size=1024, num_layers=num_layers, num_heads=8, num_kv_heads=4)
    return path


@pytest.fixture(scope="module")
def lines_of_scarce_memory(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a process prints whose memory runs out, first over many conversations, then over a single one."""
    return printed(
        """
model = RewardModel.load(MODEL, dtype="float32", device="cpu", token_budget=16384)
groups = [group(model.pattern, 100 + i, 100, 100, 100) for i in range(8)]
expected = model.with_options(token_budget=1024).score(groups)
limit(75)
found = model.score(groups)
print(model.options.token_budget, np.abs(found.score - expected.score).max())

small = group(model.pattern, 50, 20, 30)
expected = model.score([small])
limit(60)
try:
    model.score([small, group(model.pattern, 3000, 1000)])
except RuntimeError as error:
    print(error)
print(np.abs(model.score([small]).score - expected.score).max())
""",
        write_wide_model(tmp_path_factory.mktemp("wide"), num_layers=2),
    )


def test_packs_shrink_when_memory_runs_out_and_scores_stay(lines_of_scarce_memory: list[str]) -> None:
    lines = lines_of_scarce_memory
    assert lines[0].startswith("out of memory at ")
    assert lines[0].endswith(" tokens: token budget 16384 -> 8192")
    last = next(i for i, line in enumerate(lines) if not line.startswith("out of memory at "))
    budget, difference = lines[last].split()
    assert 1024 <= int(budget) <= 4096
    assert float(difference) < 1e-5


def test_a_conversation_that_does_not_fit_is_reported_and_others_are_scored(
    lines_of_scarce_memory: list[str],
) -> None:
    lines = lines_of_scarce_memory
    assert re.match(
        r"4005 tokens of one conversation do not fit in memory: .*can't allocate memory", lines[-2]
    )
    assert float(lines[-1]) < 1e-5


def test_weights_of_the_checkpoints_own_type_are_mapped_and_not_copied(tmp_path: Path) -> None:
    (line,) = printed(
        """
import armo_ray.engine.reward_model, transformers.utils.chat_template_utils
before = kilobytes("smaps_rollup", "Anonymous")
model = RewardModel.load(MODEL, dtype="bfloat16", device="cpu")
weights = sum(p.nbytes for p in model.backbone.parameters()) >> 10
print(kilobytes("smaps_rollup", "Anonymous") - before, weights)
""",
        write_wide_model(tmp_path, num_layers=8),
    )
    taken, weights = map(int, line.split())
    assert weights > 140_000  # kB
    assert taken < weights / 10


def cached_bytes(file: Path) -> int:
    return int(subprocess.run(["fincore", "-nbo", "RES", file], capture_output=True, check=True).stdout)


@pytest.mark.skipif(shutil.which("fincore") is None, reason="needs fincore of util-linux")
def test_files_are_read_into_the_systems_cache_ahead(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "ab"]
    for file in files:
        file.write_bytes(os.urandom(1 << 20) * 40)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if any(map(cached_bytes, files)):
        pytest.skip("this file system keeps its files in memory")
    read_ahead(files).join()
    patience = time.monotonic() + 20
    while any(cached_bytes(file) < 40 << 20 for file in files):
        assert time.monotonic() < patience
        time.sleep(0.1)
