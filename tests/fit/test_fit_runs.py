"""A fit as a process: killed and run again, and on Ray, it comes to the same head."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from armo_ray.cli.main import main
from tests.support.paths import ROOT
from tests.support.rated import embed_rows, rated_rows

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def hidden(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 pairs in 25 units."""
    return embed_rows(tiny_model, tmp_path_factory.mktemp("rated"), rated_rows(400), unit_rows=32)


def words(hidden: Path, output: Path, *options: str) -> list[str]:
    return ["fit", str(hidden), "--output", str(output), "--task-rows", "32", *options]


def head_of(output: Path) -> bytes:
    return (output / "head.safetensors").read_bytes()


def test_a_fit_that_is_killed_at_any_time_comes_to_the_same_bits(hidden: Path, tmp_path: Path) -> None:
    assert main(words(hidden, tmp_path / "whole")) == 0
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "armo_ray", *words(hidden, killed)]
    deaths = 0
    for _ in range(60):
        before = sums_in(killed)
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and sums_in(killed) == before:
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        deaths += 1
    assert deaths >= 2
    assert head_of(killed) == head_of(tmp_path / "whole")
    assert not (tmp_path / "killed.work").exists()


def sums_in(output: Path) -> float:
    """When sums were last saved; 0 before."""
    try:
        return os.stat(f"{output}.work/sums.npz").st_mtime_ns
    except FileNotFoundError:
        return 0


@pytest.mark.ray
def test_a_fit_on_ray_has_the_same_head_and_reports_faults_as_one_here(
    hidden: Path, local_ray: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(hidden, tmp_path / "here")) == 0
    assert main(words(hidden, tmp_path / "ray", "--engine", "ray")) == 0
    assert head_of(tmp_path / "ray") == head_of(tmp_path / "here")
    assert main(words(hidden, tmp_path / "none", "--engine", "ray", "--scale", "the=0:1")) == 2
    assert "is outside its range of 0 to 1" in capsys.readouterr().err
