"""An output, model or input that is another place on another node is told, and nothing is scored for ever."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from armo_ray.score import passes, shared_paths
from armo_ray.score.passes import Committed
from armo_ray.storage.shards import find_shards
from armo_ray.storage.store import Store
from tests.support.commit_records import commit_record
from tests.support.paths import ROOT, SAMPLE


def test_a_commit_that_the_driver_does_not_see_ends_the_run(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    unit = Committed(commit_record(), 0, "node-7")
    with pytest.raises(RuntimeError, match=r"node-7 committed unit 0.*not the same directory on every node"):
        passes.see(store, unit, patience=0)
    store.write(f"_commits/{unit.record.unit}.json", b"{}")
    passes.see(store, unit, patience=0)


def test_a_node_lacks_what_is_not_there_or_differs(tiny_model: Path, tmp_path: Path) -> None:
    (shard,) = find_shards([str(SAMPLE)])
    model = shared_paths._files_of(str(tiny_model))
    (tmp_path / "probe").write_bytes(b"")
    assert shared_paths._missing(str(tmp_path / "probe"), [model], [shard]) == []
    other = (model[0], model[1] | {"config.json": 1})
    gone = shared_paths._missing(str(tmp_path / "elsewhere" / "probe"), [model, other], [shard])
    assert gone == [f"output {tmp_path}/elsewhere", f"model {tiny_model}"]
    copy = tmp_path / "sample.jsonl"
    copy.write_bytes(b"before")
    (planned,) = find_shards([str(copy)])
    copy.write_bytes(b"another file under that name")
    assert shared_paths._missing(None, [], [planned]) == [f"input {copy}"]
    copy.unlink()
    assert shared_paths._missing(None, [], [planned]) == [f"input {copy}"]


def test_an_output_of_the_driver_alone_is_refused_before_any_work(
    local_ray: str, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    score = [sys.executable, "-m", "armo_ray", "score", "--dtype", "float32", "--gpus-per-replica", "0"]
    score += ["--model", str(tiny_model), "--input", str(SAMPLE), "--output", str(out)]
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(out)]
    if subprocess.run([*mount, "true"], check=False, capture_output=True).returncode:
        pytest.skip("a mount of one's own is not permitted here")
    environment = os.environ | {"RAY_ADDRESS": local_ray}
    done = subprocess.run(
        [*mount, *score], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert f"output {out}: not the same on node" in done.stderr
    assert list(out.iterdir()) == []
