"""Faults at random: actors, CPU workers, the driver and all of it killed, a storage that fails requests and goes
away, a disk that fills up.

`pytest tests/test_soak.py --soak-faults 200 --soak-seed 7` for longer than CI does.
"""

import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from armo_ray.storage.store import Store
from armo_ray.storage.verify import verify_output
from jobs.scale import descendants
from tests.fault_proxy import EVERY, LOST, RESET, TRUNCATED, FaultProxy
from tests.local import rows_of, score_locally, scores_of
from tests.runs import kill, start, task_of

pytest_plugins = ("tests.s3_server",)

VICTIMS = ("Replica", "_read", "_write", "driver", "everything", "storage")


def victims(driver: int, kind: str) -> list[int]:
    """The processes of a run that do what `kind` says; of workers, one."""
    everything = descendants(driver)
    if kind in ("driver", "everything"):
        return [driver] if kind == "driver" else everything
    return [pid for pid in everything if task_of(pid) == kind][:1]


def wait_for_orphans(family: list[int]) -> None:
    """The workers of a killed driver end by themselves, a little later; Ray's own agents take longer."""
    deadline = time.monotonic() + 60
    while any(map(task_of, family)):
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
    record_property: Callable[[str, object], None],
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
        process = start(tiny_model, f"{s3}/in", out, "--unit-rows", "8")
        while process.poll() is None or process.returncode != 0:
            if process.poll() is not None:  # killed: the same command goes on
                process = start(tiny_model, f"{s3}/in", out, "--unit-rows", "8")
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
    told = f"{injected} faults, {requests} requests broken, {runs} runs, {checked} rows checked"
    record_property("soak", told)


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
