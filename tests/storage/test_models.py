"""A model in an object store is copied to a node once, whole, and nothing that could run code comes with it."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from armo_ray.errors import ConfigError
from armo_ray.storage import models
from armo_ray.storage.models import local_model
from armo_ray.storage.store import Store
from armo_ray.tiny.families import write_family
from tests.support.fault_proxy import EVERY, LOST, RESET, TRUNCATED, FaultProxy
from tests.support.local import PAIR, score_locally, scores_of
from tests.support.paths import ROOT

pytest_plugins = ("tests.support.s3_server",)


@pytest.fixture
def remote(s3: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A model with files that must not be fetched, and an empty cache."""
    monkeypatch.setattr(models, "CACHE", tmp_path / "cache")
    store = Store(f"{s3}/model")
    for path in tiny_model.iterdir():
        store.write(path.name, path.read_bytes())
    for name in ("pytorch_model.bin", "modeling_armo.py", "tokenizer.pkl", "optimizer/model.safetensors"):
        store.write(name, b"not to be fetched")
    return store


def test_a_model_on_s3_scores_as_its_copy_does(remote: Store, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(PAIR)
    score_locally(remote.uri, tmp_path / "in.jsonl", tmp_path / "out")
    score_locally(tiny_model, tmp_path / "in.jsonl", tmp_path / "expected")
    assert scores_of(tmp_path / "out") == scores_of(tmp_path / "expected")
    run = json.loads((tmp_path / "out" / "_run.json").read_text())
    assert run["config"]["model"] == remote.uri


def test_a_policy_and_its_reference_model_are_both_copied(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "CACHE", tmp_path / "cache")
    (tmp_path / "in.jsonl").write_bytes(PAIR)
    for seed, name in enumerate(("policy", "reference")):
        write_family(tmp_path / name, "dpo", seed=seed)
        for path in (tmp_path / name).iterdir():
            Store(f"{s3}/{name}").write(path.name, path.read_bytes())
    for place, out in ((s3, "out"), (str(tmp_path), "expected")):
        options = {"family": "dpo", "reference_model": f"{place}/reference"}
        score_locally(f"{place}/policy", tmp_path / "in.jsonl", tmp_path / out, **options)
    assert scores_of(tmp_path / "out") == scores_of(tmp_path / "expected")
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2


def test_only_safe_files_are_fetched_and_only_once(
    remote: Store, tiny_model: Path, faulty: FaultProxy
) -> None:
    path, revision = local_model(remote.uri)
    assert {p.name: p.read_bytes() for p in Path(path).iterdir()} == {
        p.name: p.read_bytes() for p in tiny_model.iterdir()
    }
    faulty.seen.clear()
    assert local_model(remote.uri, revision) == (path, revision)
    assert (faulty.seen["get"], faulty.seen["list"]) == (0, 1)


def test_a_model_that_finds_no_room_is_an_error_and_no_copy(remote: Store, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            local_model(remote.uri)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix not in (".lock", ".partial")] == []
    path, _ = local_model(remote.uri)
    assert sum(file.stat().st_size for file in Path(path).iterdir()) > 100_000


def test_a_model_comes_whole_through_faults(
    remote: Store, tiny_model: Path, faulty: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_RANGE_BYTES", 1 << 16)
    faulty.chances = {(EVERY, fault): 0.2 for fault in (RESET, TRUNCATED, LOST, "slowdown")}
    path, _ = local_model(remote.uri)
    for original in tiny_model.iterdir():
        assert (Path(path) / original.name).read_bytes() == original.read_bytes()
    assert sum(faulty.faults.values()) >= 3


FETCH = """
import sys
from pathlib import Path
from armo_ray.storage import models

models.CACHE = Path(sys.argv[2])
print(models.local_model(sys.argv[1])[0])
"""


def test_processes_of_a_node_share_one_copy(remote: Store, faulty: FaultProxy, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FETCH, remote.uri, str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    (path,) = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert faulty.seen["get"] == len(list(Path(path).iterdir()))
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == ["", ".lock"]


def test_a_copy_that_was_interrupted_is_begun_anew(remote: Store, tmp_path: Path) -> None:
    path, _ = local_model(remote.uri)
    partial = Path(f"{path}.partial")
    os.rename(path, partial)
    (partial / "config.json").write_text("half")
    assert local_model(remote.uri)[0] == path
    assert (Path(path) / "config.json").read_bytes() == remote.read("config.json")
    assert not partial.exists()


def test_a_model_that_changed_since_the_run_began_is_refused(remote: Store) -> None:
    _, revision = local_model(remote.uri)
    remote.write("config.json", remote.read("config.json") + b" ")
    with pytest.raises(ConfigError, match=f"its files changed.*not {revision}"):
        local_model(remote.uri, revision)


def test_a_model_without_safetensors_is_refused_and_nothing_of_it_is_fetched(
    remote: Store, tmp_path: Path
) -> None:
    for name in remote.list_names(""):
        if name.endswith(".safetensors"):
            remote.delete(name)
    for uri in (remote.uri, f"{remote.uri}/nowhere"):
        with pytest.raises(
            ConfigError, match=r"it has no \*\.safetensors file; other weight formats can run code"
        ):
            local_model(uri)
    assert not (tmp_path / "cache").exists()
