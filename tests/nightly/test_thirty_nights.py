"""Thirty nights into one growing output in a bucket, with all that happens to nights."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from armo_ray.cli.main import main
from armo_ray.storage.parts import read_content
from armo_ray.storage.records import PartEntry
from armo_ray.storage.store import Store
from armo_ray.verify.output import verify_output
from tests.support.growing_outputs import rows_in
from tests.support.local import rows_of, score_locally
from tests.support.paths import ROOT, SAMPLE

pytest_plugins = ["tests.support.s3_server"]
pytestmark = [pytest.mark.ray, pytest.mark.nightly, pytest.mark.timeout(3600)]

DAYS = [str(date(2026, 11, 1) + timedelta(i)) for i in range(30)]
LATE = {5, 12, 20}  # nights before which a shard of the day before comes late
OUT_OF_TIME, DRIFTED = 8, 19
# the line after which a night is killed: in the first step, or as the next begins
KILLED = {
    10: "scoring on",
    13: "score complete",
    15: "mine complete",
    17: "label complete",
    23: "report complete",
}


def write_shard(store: Store, day: str, name: str, rows: list[dict[str, Any]]) -> None:
    """Parquet and JSONL in turns."""
    if int(day[-2:]) % 2:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        store.write(f"in/date={day}/{name}.jsonl", text.encode())
    else:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        store.write(f"in/date={day}/{name}.parquet", buffer.getvalue())


def generated(rng: random.Random, drifted: bool) -> list[dict[str, Any]]:
    """Rollouts of a night. Prompts recur in other nights, with other responses."""
    sample = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()]
    responses = [row[side] for row in sample for side in ("chosen", "rejected")]
    return [
        {
            "id": f"{rng.random()}",
            "prompt": row["prompt"],
            "responses": [" ".join(["la"] * 400)] * 3 if drifted else rng.sample(responses, 3),
        }
        for row in rng.sample(sample, 30)
    ]


def write_file(folder: Path, s3: str, model: Path) -> Path:
    (folder / "night.toml").write_text(
        f"""
[score]
input = "{s3}/in/date={{date}}/"
days = 3
output = "{s3}/scored"
model = "{model}"
dtype = "float32"
replicas = 1
gpus_per_replica = 0
keep = ["id"]
keep_text = true
unit_rows = 30
[mine]
output = "{s3}/pairs"
append = true
near_duplicates = 0.9
test_fraction = 0.2
[label]
output = "{s3}/labels"
append = true
temperature = 1
[report]
partition = "date={{date}}"
against = "{s3}/baseline"
[gate]
max_psi = 2
[publish]
to = "{s3}/published"
""",
        "utf-8",
    )
    return folder / "night.toml"


def kill_after(line: str, file: Path, day: str) -> None:
    """Run a night in a process of its own and kill it after a line of its log."""
    command = [sys.executable, "-m", "armo_ray", "nightly", str(file), "--date", day]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    night = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert night.stderr
    seen = next((said for said in night.stderr if line in said), None)
    assert seen, f"the night ended without {line!r}"
    os.killpg(night.pid, signal.SIGKILL)
    night.communicate()


class Trainer(threading.Thread):
    """Reads LATEST.json again and again, and all that it lists."""

    def __init__(self, uri: str) -> None:
        super().__init__(daemon=True)
        self.store, self.ended, self.read, self.faults = Store(uri), threading.Event(), 0, list[str]()

    def run(self) -> None:
        while not self.ended.wait(3):
            try:
                self._read_all(self.store.read_json("LATEST.json") or {"datasets": {}, "scores": []})
            except Exception as error:
                self.faults.append(f"{type(error).__name__}: {error}")

    def _read_all(self, latest: dict[str, Any]) -> None:
        for output in (*latest["datasets"].values(), *latest["scores"]):
            store = Store(output["uri"])
            for part in output["parts"]:
                read_content(store, PartEntry.from_dict(part))
                self.read += 1


@contextmanager
def training(uri: str) -> Iterator[Trainer]:
    trainer = Trainer(uri)
    trainer.start()
    try:
        yield trainer
    finally:
        trainer.ended.set()
        trainer.join()


@pytest.fixture
def cluster(s3: str) -> Iterator[Cluster]:
    """A Ray whose workers find the server."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def test_thirty_nights_equal_one_run_and_readers_of_the_latest_always_find_all_of_it(
    s3: str,
    cluster: Cluster,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    store, rng = Store(s3), random.Random(0)
    score_locally(tiny_model, SAMPLE, f"{s3}/baseline", keep_text=True)
    file = write_file(tmp_path, s3, tiny_model)
    with training(f"{s3}/published") as trainer:
        for number, day in enumerate(DAYS):
            write_shard(store, day, "a", generated(rng, number == DRIFTED))
            if number in LATE:
                write_shard(store, DAYS[number - 1], "late", generated(rng, False)[:5])
            command = ["nightly", str(file), "--date", day]
            if number in KILLED:
                kill_after(KILLED[number], file, day)
            if number == OUT_OF_TIME:
                assert main([*command, "--max-runtime", "2s"]) == 5
            assert main(command) == (4 if number == DRIFTED else 0), capsys.readouterr().err[-3000:]
            capsys.readouterr()
            latest = (store.read_json("published/LATEST.json") or {})["date"]
            assert latest == DAYS[number - (number == DRIFTED)]
    assert trainer.faults == []
    assert trainer.read > 500
    check_union(s3, tiny_model, tmp_path)
    assert main(["report", f"{s3}/scored", "--by", "date", "--output", str(tmp_path / "page")]) in (0, 4)
    assert DAYS[DRIFTED] in (tmp_path / "page/report.html").read_text("utf-8")


def check_union(s3: str, model: Path, folder: Path) -> None:
    """The nights together are one run over everything, the pairs and labels too."""
    assert verify_output(f"{s3}/scored")[1] == []
    score_locally(model, f"{s3}/in", folder / "once", unit_rows=500)
    found, expected = (
        {r["row_id"]: r["score"] for r in rows_of(o)} for o in (f"{s3}/scored", folder / "once")
    )
    assert found.keys() == expected.keys()
    assert max(abs(found[row] - expected[row]) for row in found) < 1e-5
    mined = ["mine", f"{s3}/scored", "--near-duplicates", "0.9", "--test-fraction", "0.2"]
    labelled = ["label", f"{s3}/scored", "--temperature", "1"]
    for name, command in (("pairs", mined), ("labels", labelled)):
        assert main([*command, "--output", str(folder / name)]) == 0
        assert rows_in(f"{s3}/{name}") == rows_in(folder / name)
