"""Faults at random, of every kind, in runs on every kind of input, storage and Ray: no row is lost, doubled or changed.

`bash tests/run.sh --soak` injects 1,000; `--soak-faults 20 --soak-seed 7` fewer, of other kinds and times. The
ordinary suite leaves the soak out; what a full disk does is part of it.
"""

import gzip
import json
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster
from s3fs import S3FileSystem

from armo_ray.storage.store import Store
from armo_ray.verify.output import verify_output
from jobs.measure.scale import descendants
from tests.support.fault_proxy import EVERY, LOST, RESET, TRUNCATED, FaultProxy
from tests.support.local import rejects_of, rows_of, score_locally, scores_of
from tests.support.paths import SAMPLE
from tests.support.runs import kill, program_of, start, task_of, wait_for_orphans

pytest_plugins = ("tests.support.s3_server",)

WORKERS = ("Replica", "_read", "_write")
# what ends a run, and its exit status then; it may also have ended before
ENDS = {"driver": -9, "everything": -9, "raylet": 1, "gcs_server": 1, "SIGTERM": 1, "SIGINT": 1}
BROKEN = ("slowdown", "internal", RESET, LOST, TRUNCATED)
UNIT = ("--unit-rows", "8")


class Place(NamedTuple):
    """What a run reads, where it writes, and the cluster that it joins, if any."""

    inputs: str
    output: str
    cluster: Cluster | None

    def kinds(self) -> list[str]:
        """The faults that may meet a run here."""
        kinds = [*WORKERS, *WORKERS, "driver", "SIGTERM", "SIGINT"]
        kinds += ["node"] * 2 if self.cluster else ["everything", "raylet", "gcs_server"]
        return kinds + ["storage"] * self.output.startswith("s3://")

    def commits(self) -> int:
        return len(Store(self.output).list_names("_commits"))


def processes_of(process: subprocess.Popen[str], cluster: Cluster | None) -> list[int]:
    """A driver and all that it started, with the workers of its cluster."""
    nodes = cluster.list_all_nodes() if cluster else []
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
    return [pid for root in (process.pid, *raylets) for pid in descendants(root)]


def inject(kind: str, process: subprocess.Popen[str], place: Place, proxy: FaultProxy) -> bool:
    """Do it; whether there was somebody to do it to."""
    if kind == "storage":
        proxy.down = True
        time.sleep(3)
        proxy.down = False
    elif kind == "node" and place.cluster:
        place.cluster.remove_node(place.cluster.list_all_nodes()[-1], allow_graceful=False)
        place.cluster.add_node(num_cpus=1)
    elif kind.startswith("SIG"):
        process.send_signal(signal.Signals[kind])
    else:
        victims = victims_of(kind, process, place.cluster)
        kill(victims)
        return bool(victims)
    return True


def victims_of(kind: str, process: subprocess.Popen[str], cluster: Cluster | None) -> list[int]:
    """The processes to be killed; of workers, one."""
    if kind in ("driver", "everything"):
        return [process.pid] if kind == "driver" else descendants(process.pid)
    named = task_of if kind in WORKERS else program_of
    return [pid for pid in processes_of(process, cluster) if named(pid) == kind][:1]


def attempt(
    model: Path, place: Place, proxy: FaultProxy, rng: random.Random, faults: Counter[str], wanted: int
) -> bool:
    """Run the command once, with a fault after each commit until one ends it; whether the output is complete."""
    timed = rng.random() < 0.1 and faults.total() < wanted
    limit = ("--max-runtime", f"{rng.randint(10, 60)}s") if timed else ()
    variables = {"RAY_ADDRESS": place.cluster.address} if place.cluster else {}
    process = start(model, place.inputs, place.output, *UNIT, *limit, **variables)
    statuses, family, seen, kind = {0, 5} if limit else {0}, [process.pid], place.commits(), ""
    while process.poll() is None and kind not in ENDS:
        if faults.total() < wanted and (now := place.commits()) > seen:
            seen, kind = now, rng.choice(place.kinds())
            family = descendants(process.pid)
            faults[kind] += inject(kind, process, place, proxy)
        time.sleep(0.2)
    statuses |= {ENDS[kind]} if kind in ENDS else set()
    _, told = process.communicate(timeout=300)
    if "failed: Ray did not start" in told:  # in the 30 s that it gives itself: the machine is busy
        return False
    assert process.returncode in statuses, told
    if process.returncode == 1:
        assert told.splitlines()[-1].startswith(("armo-ray score: failed: ", "armo-ray score: stopped; "))
    faults["max-runtime"] += process.returncode == 5
    wait_for_orphans(family)
    return process.returncode == 0


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(24 * 3600)
def test_faults_at_random_change_nothing(
    request: pytest.FixtureRequest,
    s3: str,
    faulty: FaultProxy,
    tiny_model: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    wanted = request.config.getoption("--soak-faults")
    seed = request.config.getoption("--soak-seed")
    rng = random.Random(seed)
    write_inputs(tmp_path / "in")
    score_locally(tiny_model, tmp_path / "in", tmp_path / "undisturbed", unit_rows=8)
    expected = found_in(tmp_path / "undisturbed")
    S3FileSystem().put(f"{tmp_path}/in/", f"{s3}/in/", recursive=True)
    faults: Counter[str] = Counter()
    checked = runs = 0
    with ExitStack() as stack:
        cluster = started_cluster(stack)
        while faults.total() < wanted:
            turn = (seed + runs) % 4
            root = (f"{tmp_path}", s3)[turn % 2]
            place = Place(f"{root}/in", f"{root}/out-{runs}", cluster if turn > 1 else None)
            runs += 1
            faulty.chances = {(EVERY, fault): 0.01 for fault in BROKEN}
            while not attempt(tiny_model, place, faulty, rng, faults, wanted):
                pass
            faulty.chances = {}
            found = found_in(place.output)
            check(found, expected)
            assert verify_output(place.output)[1] == []
            checked += len(found[0])
    by_kind = ", ".join(f"{kind} {n}" for kind, n in sorted(faults.items()) if n)
    broken = sum(faulty.faults.values())
    told = (
        f"{faults.total()} faults ({by_kind}), {broken} requests broken, {runs} runs, {checked} rows checked"
    )
    record_property("soak", told)


def started_cluster(stack: ExitStack) -> Cluster:
    """A head and two nodes, of which the last is the one to be lost."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    stack.callback(cluster.shutdown)
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    return cluster


def write_inputs(folder: Path) -> None:
    """The sample, twice, in Parquet of several row groups and JSONL of each compression; two rows are rejected."""
    rows = [json.loads(line) for line in SAMPLE.open()] * 2
    rows[3]["chosen"] = rows[200]["prompt"] = ""
    (folder / "date=1").mkdir(parents=True)
    for name, begin, end in (("a", 0, 60), ("date=1/b", 60, 100)):
        pq.write_table(pa.Table.from_pylist(rows[begin:end]), folder / f"{name}.parquet", row_group_size=3)
    lines = [f"{json.dumps(row)}\n".encode() for row in rows]
    for i in range(2):
        (folder / f"c{i}.jsonl").write_bytes(b"".join(lines[100 + 20 * i : 120 + 20 * i]))
        (folder / f"date=1/d{i}.jsonl.gz").write_bytes(
            gzip.compress(b"".join(lines[140 + 30 * i : 170 + 30 * i]))
        )
        zst = pa.compress(b"".join(lines[200 + 30 * i : 230 + 30 * i]), codec="zstd", asbytes=True)
        (folder / f"e{i}.jsonl.zst").write_bytes(zst)


def found_in(out: Path | str) -> tuple[dict[tuple[str, int, int], float], set[Any]]:
    """Scores by shard, row and candidate, wherever the shard lies, and the rejects."""
    rows = rows_of(out)
    scores = {(Path(r["source"]).name, r["source_row"], r["candidate"]): float(r["score"]) for r in rows}
    rejects = rejects_of(out)
    assert len(scores) == len({row["row_id"] for row in rows}) == len(rows)
    assert len(set(rejects)) == len(rejects)
    return scores, set(rejects)


def check(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    assert (found[0].keys(), found[1]) == (expected[0].keys(), expected[1])
    assert max(abs(found[0][key] - expected[0][key]) for key in expected[0]) < 1e-5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", folder], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def test_a_full_disk_stops_the_run_and_a_larger_one_lets_it_go_on(
    small_disk: Path, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out, some = small_disk / "out", sorted(shards.iterdir())[:4]
    with pytest.raises(OSError, match="No space left on device"):
        score_locally(tiny_model, some, out, unit_rows=20)
    assert not (out / "_SUCCESS").exists()
    assert (out / "_commits").exists()
    resize(small_disk, "64m")
    score_locally(tiny_model, some, out, unit_rows=20)
    score_locally(tiny_model, some, tmp_path / "undisturbed", unit_rows=20)
    assert scores_of(out) == scores_of(tmp_path / "undisturbed")
    assert verify_output(str(out))[1] == []


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_disks_that_fill_up_at_random_change_nothing(
    request: pytest.FixtureRequest,
    small_disk: Path,
    tiny_model: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    rng = random.Random(request.config.getoption("--soak-seed"))
    write_inputs(tmp_path / "in")
    score_locally(tiny_model, tmp_path / "in", tmp_path / "undisturbed", unit_rows=8)
    expected = found_in(tmp_path / "undisturbed")
    faults = 0
    for run in count():
        out, size = small_disk / f"out-{run}", used_kib(small_disk)
        while not (out / "_SUCCESS").exists():
            size += rng.randint(16, 128)
            resize(small_disk, f"{size}k")
            faults += fills_up(tiny_model, tmp_path / "in", out)
        check(found_in(out), expected)
        assert verify_output(str(out))[1] == []
        if faults >= request.config.getoption("--soak-faults") / 10:
            break
    record_property("full disks", f"{faults} faults, {run + 1} runs")


def fills_up(model: Path, inputs: Path, out: Path) -> bool:
    """Whether the disk does before all is scored."""
    try:
        score_locally(model, inputs, out, unit_rows=8)
    except OSError as error:
        if "No space left on device" not in str(error):
            raise
        return True
    return False


def used_kib(folder: Path) -> int:
    done = subprocess.run(["du", "-sk", folder], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])
