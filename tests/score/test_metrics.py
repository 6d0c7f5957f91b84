"""What Prometheus gets to see: scraped over HTTP from a run that goes on."""

import os
import re
import signal
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
import ray

from armo_ray.score import pipeline
from armo_ray.score.job import prepare
from armo_ray.score.progress.metrics import SERIES
from armo_ray.score.replicas import replicas_up
from tests.support.local import config_for

SAMPLE_OF = re.compile(r"^(ray_armo_ray_\w+)\{(.*)\} (\S+)$", re.MULTILINE)
UNKNOWN_ON_A_CPU = {"ray_armo_ray_mfu_ratio"}
NONE_IN_A_GOOD_RUN = {"ray_armo_ray_retries_total"}


def scrape(output: Path) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Labels and values of a run's metrics, as the head's agent exports them to whoever asks."""
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as response:
        text = response.read().decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for name, labels, value in SAMPLE_OF.findall(text):
        told = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if told["output"] == str(output):  # others ran on this Ray before
            found.setdefault(name, []).append((told, float(value)))
    return found


@pytest.mark.nightly
def test_a_run_that_goes_on_exports_every_metric(
    local_ray: str, tiny_model: Path, shards: Path, tmp_path: Path
) -> None:
    (shards_with_a_reject := tmp_path / "in").mkdir()
    for shard in sorted(shards.iterdir()):
        (shards_with_a_reject / shard.name).write_text('{"prompt": ""}\n' + shard.read_text("utf-8"), "utf-8")
    options = {"unit_rows": 2, "gpus_per_replica": 0, "replicas": (1, 1), "layout": "preference"}
    config = config_for(tiny_model, shards_with_a_reject, tmp_path / "out", **options)
    job, spans = prepare(config)
    while replicas_up()[0]:  # of other tests
        time.sleep(0.1)
    wanted = SERIES.keys() - UNKNOWN_ON_A_CPU - NONE_IN_A_GOOD_RUN
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    over = threading.Event()

    def stop_when_all_are_there() -> None:
        # the replicas are counted every other second: the first count is from before one is loaded
        while not (wanted <= found.keys() and found["ray_armo_ray_replicas"][0][1]):
            if over.wait(0.2):
                return
            with suppress(OSError):  # the agent does not answer yet, or not in time
                found.update(scrape(tmp_path / "out"))
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop_when_all_are_there).start()
    try:
        with pytest.raises(KeyboardInterrupt):  # else the metrics were not there before the run was over
            pipeline.run(job, spans, config)
    finally:
        over.set()
    for name, samples in found.items():
        for labels, _ in samples:
            assert labels["model"] == str(tiny_model)
            assert (SERIES[name].tag or "output") in labels
    rejected = {labels["reason"] for labels, _ in found["ray_armo_ray_rejected_total"]}
    assert rejected == {"malformed_row"}
    phases = {labels["phase"]: value for labels, value in found["ray_armo_ray_replica_seconds_total"]}
    assert phases.keys() <= {"model", "pack", "wait"}
    assert phases["model"] > 0
    ((_, replicas),) = found["ray_armo_ray_replicas"]
    assert replicas == 1
    for name in ("done_ratio", "pack_fill_ratio", "idle_ratio"):
        ((_, share),) = found[f"ray_armo_ray_{name}"]
        assert 0 < share <= 1
