"""An output that an earlier version wrote is resumed, verified and read by this one."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from armo_ray.cli.main import main
from armo_ray.model.checkpoint import inspect
from armo_ray.storage import models
from armo_ray.storage.commits import COMMITS, RUN, SUCCESS, list_commits
from armo_ray.storage.json_files import sealed
from armo_ray.storage.records import CommitRecord, Manifest, RunFile
from armo_ray.storage.store import Store
from armo_ray.verify.output import verify_output
from tests.support.local import rows_of, score_locally

pytest_plugins = ("tests.support.s3_server",)

STORED = Path(__file__).parent / "stored"
RECORDS = sorted((STORED / "out" / COMMITS).iterdir())
OUTPUT = "s3://stored/out"
OPTIONS: dict[str, Any] = {
    "device": "cpu",
    "unit_rows": 8,
    "keep": ["id", "subset"],
    "keep_text": True,
    "max_reject_fraction": 0.5,
}
OF_LATER_VERSIONS = (
    "content",
    "run_fingerprint",
    "num_packs",
    "packed_tokens",
    "flops",
    "peak_flops",
    "token_budget",
)


@pytest.fixture
def stored(s3: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The stored output, with its input and model, in the bucket that it names."""
    if os.environ.get("ARMO_RAY_TEST_S3"):
        pytest.skip("needs a bucket of a certain name")
    monkeypatch.setattr(models, "CACHE", tmp_path / "cache")
    fs = S3FileSystem()
    fs.mkdir("stored")
    for folder, name in ((STORED / "in", "in"), (STORED / "out", "out"), (tiny_model, "model")):
        fs.put(f"{folder}/", f"stored/{name}/", recursive=True)
    yield Store(OUTPUT)
    fs.rm("stored", recursive=True)


def test_the_tiny_model_is_the_one_that_scored_the_stored_output(tiny_model: Path) -> None:
    run = RunFile.from_json((STORED / "out" / RUN).read_bytes())
    assert inspect(str(tiny_model)).fingerprint == run.identity["model_fingerprint"]


def test_a_stored_output_that_lacks_its_last_unit_is_resumed_and_is_whole_again(
    stored: Store, tmp_path: Path
) -> None:
    records = [CommitRecord.from_json(path.read_bytes(), path.stem) for path in RECORDS]
    last = max((record for record in records if record.scored), key=lambda record: record.committed_at or "")
    for name in (SUCCESS, f"{COMMITS}/{last.unit}.json", *(part.path for part in last.parts)):
        stored.delete(name)
    manifest = score_locally("s3://stored/model", "s3://stored/in", OUTPUT, **OPTIONS)
    assert manifest["totals"] == json.loads((STORED / "out" / SUCCESS).read_bytes())["totals"]
    assert list_commits(stored) == {record.unit for record in records}
    for path in RECORDS:
        same = stored.read(f"{COMMITS}/{path.name}") == path.read_bytes()
        assert same == (path.stem != last.unit)
    check_rows(rows_of(OUTPUT), rows_of(STORED / "out"))
    assert rows_of(OUTPUT, "rejects") == rows_of(STORED / "out", "rejects")
    assert verify_output(OUTPUT) == ({"units": 7, "candidates": 49, "scored": 48, "rejected": 1}, [])
    assert main(["mine", OUTPUT, "--output", str(tmp_path / "pairs")]) == 0
    assert pq.read_table(tmp_path / "pairs" / "data").num_rows > 0
    assert main(["report", OUTPUT, "--output", str(tmp_path / "report.html")]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["totals"] == manifest["totals"]


def check_rows(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Whether rows are equal, scores, rewards and gates within float32 rounding."""
    for row, other in zip(rows, expected, strict=True):
        for name in ("rewards", "gating"):
            assert row.pop(name) == pytest.approx(other.pop(name), abs=1e-5)
        assert row.pop("score") == pytest.approx(other.pop("score"), abs=1e-5)
        assert row == other


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem[-4:])
def test_a_stored_record_is_written_as_it_was_read(path: Path) -> None:
    raw = path.read_bytes()
    assert CommitRecord.from_json(raw, path.stem).to_json() == raw


def test_the_stored_run_and_manifest_are_written_as_they_were_read() -> None:
    run, manifest = ((STORED / "out" / name).read_bytes() for name in (RUN, SUCCESS))
    assert RunFile.from_json(run).to_json() == run
    assert Manifest.from_json(manifest).to_json() == manifest


@pytest.mark.parametrize("name", OF_LATER_VERSIONS)
def test_a_record_that_lacks_what_later_versions_write_is_written_without_it(name: str) -> None:
    values = json.loads(RECORDS[0].read_bytes())
    del values[name]
    raw = sealed(values)
    assert CommitRecord.from_json(raw, RECORDS[0].stem).to_json() == raw


def test_what_a_later_version_adds_to_a_file_is_kept() -> None:
    unit = RECORDS[0].stem
    added = {"novel": [1, None]}
    for name, read in (
        (f"{COMMITS}/{unit}.json", lambda raw: CommitRecord.from_json(raw, unit)),
        (RUN, RunFile.from_json),
        (SUCCESS, Manifest.from_json),
    ):
        values = json.loads((STORED / "out" / name).read_bytes()) | added
        for part in values.get("parts", ()):
            part |= added
        raw = sealed(values)
        assert read(raw).to_json() == raw
