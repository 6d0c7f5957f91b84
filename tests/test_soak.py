"""Faults at random: actors, CPU workers, the driver and all of it killed, a storage that fails requests and goes
away, a disk that fills up.

`pytest tests/test_soak.py --soak-faults 200 --soak-seed 7` for longer than CI does.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from armo_ray.storage.store import Store
from armo_ray.storage.verify import verify_output
from jobs.scale import descendants
from tests.fault_proxy import EVERY, LOST, RESET, TRUNCATED, FaultProxy
from tests.local import rows_of, score_locally, scores_of

pytest_plugins = ("tests.s3_server",)

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "jobs" / "samples" / "llmbar.jsonl"
VICTIMS = ("Replica", "_read", "_write", "driver", "everything", "storage")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample four times over, in 26 shards."""
    folder = tmp_path_factory.mktemp("shards")
    lines = SAMPLE.read_text("utf-8").splitlines(keepends=True) * 4
    for i in range(26):
        (folder / f"{i:02}.jsonl").write_text("".join(lines[20 * i : 20 * i + 20]), "utf-8")
    return folder


def start(model: Path, shards: str, out: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "armo_ray.cli", "score", "--model", str(model), "--dtype", "float32"]
    command += ["--input", shards, "--output", out, "--unit-rows", "8"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def task(pid: int) -> str:
    """What a Ray worker is doing, nothing of other processes."""
    try:
        name = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except OSError:
        return ""
    found = re.search(r"ray::[^\0 ]*(_read|_write|Replica)\b", name)
    return found[1] if found else ""


def victims(driver: int, kind: str) -> list[int]:
    """The processes of a run that do what `kind` says; of workers, one."""
    everything = descendants(driver)
    if kind in ("driver", "everything"):
        return [driver] if kind == "driver" else everything
    return [pid for pid in everything if task(pid) == kind][:1]


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_for_orphans(family: list[int]) -> None:
    """The workers of a killed driver end by themselves, a little later; Ray's own agents take longer."""
    deadline = time.monotonic() + 60
    while any(map(task, family)):
        assert time.monotonic() < deadline, "workers outlive their driver"
        time.sleep(0.2)
    kill(family)


def inject(kind: str, process: subprocess.Popen[str], proxy: FaultProxy) -> bool:
    """Do it; whether there was somebody to do it to."""
    if kind == "storage":
        proxy.down = True
        time.sleep(3)
        proxy.down = False
        return True
    pids, family = victims(process.pid, kind), descendants(process.pid)
    kill(pids)
    if process.pid in pids:
        process.communicate()
        wait_for_orphans(family)
    return bool(pids)


@pytest.mark.timeout(3600)
def test_faults_at_random_change_nothing(
    request: pytest.FixtureRequest,
    s3: str,
    faulty: FaultProxy,
    shards: Path,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    faults = request.config.getoption("--soak-faults")
    rng = random.Random(request.config.getoption("--soak-seed"))
    score_locally(tiny_model, shards, tmp_path / "undisturbed", unit_rows=8)
    expected = scores_by_name(tmp_path / "undisturbed")
    S3FileSystem().put(f"{shards}/", f"{s3}/in/", recursive=True)
    injected = checked = runs = 0
    while injected < faults:
        out = f"{s3}/out-{runs}"
        runs += 1
        faulty.chances = {(EVERY, fault): 0.01 for fault in ("slowdown", "internal", RESET, LOST, TRUNCATED)}
        process = start(tiny_model, f"{s3}/in", out)
        while process.poll() is None or process.returncode != 0:
            if process.poll() is not None:  # killed: the same command goes on
                process = start(tiny_model, f"{s3}/in", out)
            if injected < faults and Store(out).list_names("_commits"):
                time.sleep(rng.random() * 3)
                injected += inject(rng.choice(VICTIMS), process, faulty)
            time.sleep(0.1)
        faulty.chances = {}
        found = scores_by_name(out)
        assert found.keys() == expected.keys()
        assert max(abs(found[key] - expected[key]) for key in expected) < 1e-5
        assert verify_output(out)[1] == []
        checked += len(found)
    requests = sum(faulty.faults.values())
    print(f"{injected} faults and {requests} requests broken in {runs} runs, {checked} rows checked")


def scores_by_name(out: Path | str) -> dict[tuple[str, int, int], float]:
    """Scores by shard, row and candidate, wherever the shard lies."""
    rows = rows_of(out)
    found = {
        (Path(row["source"]).name, row["source_row"], row["candidate"]): float(row["score"]) for row in rows
    }
    assert len(found) == len(rows)
    return found


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_stops_the_run_and_a_larger_one_lets_it_go_on(
    small_disk: Path, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out = small_disk / "out"
    with pytest.raises(OSError, match="No space left on device"):
        score_locally(tiny_model, shards, out, unit_rows=20)
    assert not (out / "_SUCCESS").exists()
    assert (out / "_commits").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    score_locally(tiny_model, shards, out, unit_rows=20)
    score_locally(tiny_model, shards, tmp_path / "undisturbed", unit_rows=20)
    assert scores_of(out) == scores_of(tmp_path / "undisturbed")
    assert verify_output(str(out))[1] == []
