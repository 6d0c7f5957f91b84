"""`armo-ray verify` of a dataset of mine or label: every damage is found, and a whole one is called so."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from armo_ray.cli.main import main
from armo_ray.storage import lock
from armo_ray.storage.store import Store
from tests.support.growing_outputs import reveal, units_of, write_shards
from tests.support.paths import SAMPLE
from tests.support.synthetic_outputs import score_synthetically

pytest_plugins = ["tests.support.s3_server"]

Made = Callable[[str, bool], Store]


@pytest.fixture(params=["disk", "s3"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    """Makes pairs of this format, in one go or by two increments."""
    place = str(tmp_path / "pairs") if request.param == "disk" else request.getfixturevalue("s3") + "/pairs"

    def make(kind: str, grows: bool) -> Store:
        rows = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()][:30]
        whole = score_synthetically(
            tmp_path / "whole", write_shards(tmp_path / "in", rows, 4), keep_text=True
        )
        for shards in (2, 4) if grows else (4,):
            reveal(whole, tmp_path / "scores", units_of(whole)[:shards])
            command = ["mine", str(tmp_path / "scores"), "--output", place, "--format", kind]
            assert main([*command, *(["--append"] if grows else [])]) == 0
        return Store(place)

    return make


def verified(store: Store, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    capsys.readouterr()
    return main(["verify", store.uri]), capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_every_damaged_missing_or_strange_part_is_named(
    kind: str, grows: bool, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    store = made(kind, grows)
    listed = (store.read_json("_SUCCESS") or {})["parts"]
    rows = sum(part["rows"] for part in listed)
    whole = f"{store.uri}: {len(listed)} parts, {rows} rows: whole"
    assert verified(store, capsys) == (0, [whole])
    part = next(part for part in listed if part["rows"])
    content = store.read(part["path"])
    flipped = content[:40] + bytes([content[40] ^ 1]) + content[41:]
    for damaged, told in (
        (flipped, "not those that were committed"),
        (content[:-3], f"{len(content) - 3} bytes"),
    ):
        store.write(part["path"], damaged)
        status, (fault, last) = verified(store, capsys)
        assert (status, part["path"] in fault, told in fault) == (1, True, True)
        assert last.endswith(" rows: 1 fault")
    store.delete(part["path"])
    status, (fault, _) = verified(store, capsys)
    assert (status, f"{part['path']}: cannot be read" in fault) == (1, True)
    store.write(part["path"], content)
    store.write(f"data/train/part-99999.{kind}", content)
    status, lines = verified(store, capsys)
    if grows:  # the next increment deletes it
        assert (status, lines) == (0, [whole])
    else:
        told = f"data/train/part-99999.{kind}: not in the manifest, but readers"
        assert (status, lines[0].startswith(told)) == (1, True)
    store.delete(f"data/train/part-99999.{kind}")
    assert verified(store, capsys) == (0, [whole])
    assert main(["verify", store.uri, "--repair"]) == 2


def test_increments_and_a_manifest_that_do_not_fit_are_named(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    store = made("parquet", True)
    manifest, last = store.read("_SUCCESS"), store.read("_increments/00002.json")
    store.delete("_SUCCESS")
    assert verified(store, capsys)[1][0].startswith("no _SUCCESS: the dataset is not finished")
    store.write("_SUCCESS", manifest)
    store.delete("_increments/00002.json")
    status, lines = verified(store, capsys)
    assert (status, "its parts are not those of its increments" in lines[0]) == (1, True)
    store.write("_increments/00002.json", last.replace(b'"rows"', b'"rowz"', 1))
    status, lines = verified(store, capsys)
    assert (status, "00002.json: damaged" in lines[0]) == (1, True)


def test_a_dataset_that_is_being_written_is_not_judged(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    store = made("parquet", True)
    with lock.held(store, "mine"):
        assert main(["verify", store.uri]) == 2
    assert "armo-ray mine is writing it" in capsys.readouterr().err
    assert main(["verify", store.uri]) == 0


def test_scores_without_their_run_are_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = score_synthetically(tmp_path / "scores", SAMPLE)
    (scores / "_run.json").unlink()
    assert main(["verify", str(scores)]) == 2
    assert "no _run.json" in capsys.readouterr().err
