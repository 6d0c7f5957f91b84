"""Runs on clusters of several nodes: every node works, may come late, and may be lost."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.experimental.internal_kv import _internal_kv_get

from armo_ray.storage.verify import verify_output
from jobs.scale import descendants
from tests.local import score_locally, scores_of

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "jobs" / "samples" / "llmbar.jsonl"
GPU_NODE: Any = {"num_cpus": 1, "num_gpus": 1}  # in name: its replicas run on CPUs


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head and a node without GPUs, and one with a GPU."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    cluster.add_node(**GPU_NODE)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample four times over, in 26 shards."""
    folder = tmp_path_factory.mktemp("shards")
    lines = SAMPLE.read_text("utf-8").splitlines(keepends=True) * 4
    for i in range(26):
        (folder / f"{i:02}.jsonl").write_text("".join(lines[20 * i : 20 * i + 20]), "utf-8")
    return folder


@pytest.fixture(scope="module")
def expected(shards: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    out = tmp_path_factory.mktemp("alone") / "out"
    score_locally(tiny_model, shards, out)
    return scores_of(out)


def start(cluster: Cluster, model: Path, shards: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "armo_ray.cli", "score", "--model", str(model), "--dtype", "float32"]
    command += ["--input", str(shards), "--output", str(out), "--device", "cpu", "--unit-rows", "5", *options]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], done: Any) -> None:
    deadline = time.monotonic() + 180
    while not done() and process.poll() is None:
        assert time.monotonic() < deadline, "nothing in three minutes"
        time.sleep(0.1)


def finish(process: subprocess.Popen[str], out: Path, expected: dict[str, float]) -> str:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    found = scores_of(out)
    assert found.keys() == expected.keys()
    assert max(abs(found[key] - expected[key]) for key in expected) < 1e-5
    assert verify_output(str(out))[1] == []
    return errors


def commits(out: Path) -> int:
    return len(list(out.glob("_commits/*.json")))


def workers(node: Any) -> set[str]:
    """What the workers of a node are doing."""
    found = set()
    for pid in descendants(node.all_processes["raylet"][0].process.pid):
        try:
            name = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        except OSError:
            continue
        found |= set(re.findall(r"ray::[^\0 ]*(_read|_write|Replica)\b", name))
    return found


@pytest.mark.timeout(400)
def test_every_node_works_and_the_loss_of_one_costs_nothing(
    cluster: Cluster, shards: Path, expected: dict[str, float], tiny_model: Path, tmp_path: Path
) -> None:
    lost = cluster.add_node(**GPU_NODE)
    process = start(cluster, tiny_model, shards, tmp_path, "--replicas", "2", "--gpus-per-replica", "1")
    nodes = list(cluster.list_all_nodes())
    seen: list[set[str]] = [set() for _ in nodes]

    def all_worked() -> bool:
        for tasks, node in zip(seen, nodes, strict=True):
            tasks |= workers(node)
        return all(seen) and commits(tmp_path) >= 3

    wait_for(process, all_worked)
    assert process.poll() is None, "the run ended before a node was lost"
    assert sum(any("Replica" in task for task in tasks) for tasks in seen) == 2, seen
    cluster.remove_node(lost, allow_graceful=False)
    finish(process, tmp_path, expected)


@pytest.mark.timeout(400)
def test_a_replica_of_two_gpus_waits_for_a_node_that_has_both(
    cluster: Cluster, shards: Path, expected: dict[str, float], tiny_model: Path, tmp_path: Path
) -> None:
    cluster.add_node(**GPU_NODE)  # two GPUs on two nodes are no room for a replica of two
    options = ("--replicas", "1", "--gpus-per-replica", "2", "--device", "cpu,cpu")
    process = start(cluster, tiny_model, shards, tmp_path, *options)
    time.sleep(20)
    assert process.poll() is None
    assert commits(tmp_path) == 0
    cluster.add_node(num_cpus=1, num_gpus=2)
    errors = finish(process, tmp_path, expected)
    assert "waiting for the GPUs of 1 replicas of 2 GPUs: the nodes have 1 + 1" in errors


def test_a_run_that_waits_in_vain_says_what_the_cluster_has(
    cluster: Cluster, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    options = ("--replicas", "3", "--gpus-per-replica", "1", "--wait", "0.1")
    process = start(cluster, tiny_model, shards, tmp_path, *options)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    ray.init(cluster.address)
    assert json.loads(_internal_kv_get("autoscaler_resource_request") or "[]") == []  # nothing is kept for it
    assert "3 replicas of 1 GPUs: after 0.1 minutes the nodes of the cluster have 1 GPUs" in errors
