"""Checks that every node of a cluster sees the paths of a run as the driver does.

A path without a protocol names a different place on every machine, unless the machines mount the same disk there.
"""

import logging
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from armo_ray.errors import ConfigError
from armo_ray.storage.filesystem import is_remote
from armo_ray.storage.models import SUFFIXES
from armo_ray.storage.shards import Shard, stat_shard
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)

_MOST_FOLDERS = 64  # input folders checked on every node, one shard in each
_PROBE_S = 60.0
_ADVICE = "Use a URI such as s3://, or a directory that all nodes mount"


Found = tuple[str, str | None]  # a model and its revision, None if it is a directory


def probe(store: Store, models: Sequence[Found], shards: Sequence[Shard]) -> None:
    """Check on every node that can do work that it sees the local output, the models and the input.

    Raises ConfigError if a node does not. A node that does not answer within a minute is only logged.
    """
    folders = {shard.uri.rpartition("/")[0]: shard for shard in shards if not is_remote(shard.uri)}
    firsts = list(folders.values())[:_MOST_FOLDERS]
    files = [_files_of(model) for model, revision in models if not revision]
    if not (store.local or firsts or files):
        return
    name = f".probe.{uuid.uuid4().hex}"  # named like a temporary file: swept later if this process is killed
    if store.local:
        store.write(name, b"")
    try:
        task: Any = ray.remote(num_cpus=0, max_retries=0)(_missing)
        nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].keys() & {"CPU", "GPU"}]
        tasks = [
            task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(store.path(name) if store.local else None, files, firsts)
            for node in nodes
        ]
        deadline = time.monotonic() + _PROBE_S
        for node, result in zip(nodes, tasks, strict=True):
            _check_node(node["NodeManagerHostname"], result, deadline - time.monotonic())
    finally:
        if store.local:
            store.delete(name)


def _files_of(model: str) -> tuple[str, dict[str, int]]:
    """A model directory, and the sizes in bytes of its files by name."""
    files = Path(model).iterdir() if Path(model).is_dir() else ()
    return model, {file.name: file.stat().st_size for file in files if file.suffix in SUFFIXES}


def _missing(
    written: str | None, models: Sequence[tuple[str, dict[str, int]]], shards: Sequence[Shard]
) -> list[str]:
    """Which of these this node does not see: a file written in the output, models and shards."""
    missing = []
    if written is not None and not Path(written).exists():
        missing.append(f"output {os.path.dirname(written)}")
    missing += [f"model {model[0]}" for model in models if _files_of(model[0]) != model]
    return missing + [f"input {shard.uri}" for shard in shards if not _is_here(shard)]


def _is_here(shard: Shard) -> bool:
    current = stat_shard(shard.uri)
    return current is not None and current.identity == (shard.stamp or shard.identity)


def _check_node(host: str, result: Any, seconds: float) -> None:
    try:
        missing = ray.get(result, timeout=max(seconds, 0.0))
    except (RayError, GetTimeoutError) as error:
        logger.warning("node %s: cannot check whether it sees the paths of this run: %s", host, error)
        return
    if missing:
        raise ConfigError(f"{missing[0]}: not the same on node {host} as on the driver. {_ADVICE}")
