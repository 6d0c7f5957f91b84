"""Modules of the user's in the working directory take the place of nobody else's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.local import PAIR
from tests.support.paths import ROOT
from tests.support.runs import write_user_modules


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a shard, and with modules that end the process that imports them."""
    (tmp_path / "in.jsonl").write_bytes(PAIR)
    write_user_modules(tmp_path)
    return tmp_path


def run(folder: Path, module: str, *arguments: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments, "--input", "in.jsonl", "--dtype", "float32"],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.ray
@pytest.mark.nightly  # test_life runs in such a directory
def test_a_run_takes_no_module_from_the_working_directory(folder: Path, tiny_model: Path) -> None:
    done = run(folder, "armo_ray", "score", "--model", str(tiny_model), "--output", "out")
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "_SUCCESS").exists()


def test_a_job_takes_none_beside_the_package_that_it_runs(folder: Path, tiny_model: Path) -> None:
    for package in ("armo_ray", "jobs"):  # as in a checkout, or where `ray job submit` puts one
        (folder / package).symlink_to(ROOT / package)
    done = run(
        folder, "jobs.score", "--model", str(tiny_model), "--output", "hf://none", path=folder / "none"
    )
    assert done.returncode == 2, done.stderr
    assert "outputs go to a local path" in done.stderr
