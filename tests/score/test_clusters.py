"""Runs on clusters: what is waited for in vain, replicas whose node is lost, and a cluster that stops.

That every node works, may come late, and may be lost is held by test_submit.py."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import ActorDiedError
from ray.experimental.internal_kv import _internal_kv_get

from armo_ray.cluster.connect import connected
from armo_ray.errors import ConfigError
from armo_ray.score.replicas import Pool, end_stranded, pool_of
from tests.support import runs
from tests.support.local import config_for
from tests.support.runs import finish, read_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head of three GPUs, in name: replicas run on CPUs. Tests run in the order in which they stand here."""
    head = {"num_cpus": 2, "num_gpus": 3, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def start(
    cluster: Cluster, model: Path, shards: Path, out: Path, *options: str, **variables: Any
) -> subprocess.Popen[str]:
    common = ("--device", "cpu", "--unit-rows", "10")
    return runs.start(model, shards, out, *common, *options, RAY_ADDRESS=cluster.address, **variables)


@pytest.mark.nightly
def test_a_run_that_waits_in_vain_says_what_the_cluster_has(
    cluster: Cluster, shards: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    config = config_for(tiny_model, shards, tmp_path, replicas=(5, 5), gpus_per_replica=1, wait=0.05)
    why = r"5 replicas of 1 GPUs: after 0\.05 minutes the nodes of the cluster have 3 GPUs"
    with connected(), pytest.raises(ConfigError, match=why):
        pool_of(config)
    ray.init(cluster.address)
    assert json.loads(_internal_kv_get("autoscaler_resource_request") or "[]") == []  # nothing is kept for it
    ray.shutdown()


@pytest.mark.nightly
def test_what_is_queued_at_a_replica_whose_node_is_lost_and_has_no_room_elsewhere_fails(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Replica:
        def wait(self, seconds: float) -> None:
            time.sleep(seconds)

    ray.init(cluster.address, log_to_driver=False)
    actor: Any = ray.remote(num_gpus=3, max_restarts=-1, max_task_retries=-1)(Replica)
    other = actor.remote()
    ray.get(other.wait.remote(0))  # it has all three GPUs of the head
    lost = cluster.add_node(num_cpus=1, num_gpus=3)
    replica = actor.remote()
    ray.get(replica.wait.remote(0))
    queued = replica.wait.remote(60)
    cluster.remove_node(lost, allow_graceful=False)
    since: dict[str, float] = {}
    deadline = time.monotonic() + 60
    pool = Pool(3, 2, 2, "cpu")
    while not since:
        end_stranded(pool, since)
        assert time.monotonic() < deadline, "the loss of the node is not noticed"
        time.sleep(0.2)
    assert ray.wait([queued], timeout=1)[0] == []  # it would wait for ever
    monkeypatch.setattr("armo_ray.score.replicas.STRANDED_S", 0)
    end_stranded(pool, since)
    with pytest.raises(ActorDiedError):
        ray.get(queued, timeout=30)
    ray.get(other.wait.remote(0), timeout=30)
    ray.shutdown()


@pytest.mark.nightly
def test_a_run_whose_cluster_stops_says_so_and_what_to_do(
    cluster: Cluster, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    process = start(cluster, tiny_model, shards, tmp_path, "--replicas", "9", "--gpus-per-replica", "1")
    read_until(process, "waiting for the GPUs of 9 replicas")
    for node in cluster.list_all_nodes():  # the last that a test does with them
        node.kill_all_processes(check_alive=False, allow_graceful=False)
    told = finish(process, 1).splitlines()
    assert told[-1].startswith("armo-ray score: failed: this node's raylet of the Ray cluster at ")
    assert re.search(r" is gone(, and the process ended with it)?\. See that it is up", told[-1])
    assert "run the same command again" in told[-1]
