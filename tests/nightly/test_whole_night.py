"""A whole night on Ray: done once, judged, stopped before it is published, resumed."""

import json
from pathlib import Path
from typing import Any

import pytest

from armo_ray.nightly import publish as publishing
from armo_ray.verify.output import verify_output
from tests.support.nights import DAY, run, statuses
from tests.support.paths import SAMPLE


def write_night(folder: Path, model: Path, gate: str = "", to: str = "") -> Path:
    shard = folder / f"in/date={DAY}/a.jsonl"
    if not shard.exists():
        shard.parent.mkdir(parents=True)
        shard.write_text("".join(SAMPLE.read_text("utf-8").splitlines(keepends=True)[:12]), "utf-8")
    (folder / "night.toml").write_text(
        f"""
[score]
input = "{folder}/in/date={{date}}/"
output = "{folder}/out/{{date}}"
model = "{model}"
dtype = "float32"
replicas = 1
gpus_per_replica = 0
keep_text = true
[mine]
output = "{folder}/pairs/{{date}}"
[report]
[gate]
min_pairs = 5
{gate}
[publish]
to = "{to or folder / "published"}"
""",
        "utf-8",
    )
    return folder / "night.toml"


def test_a_night_is_made_judged_and_published_once(
    local_ray: str,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = write_night(tmp_path, tiny_model, "min_mean_margin = 1e9")
    status, summary = run(capsys, file)
    assert status == 4
    assert summary["published"] is None
    assert [c["name"] for c in summary["gate"] if not c["passed"]] == ["min_mean_margin"]
    assert "min_mean_margin: 0." in summary["meaning"]
    assert statuses(summary) == dict.fromkeys(("score", "mine", "report"), "complete")
    published = tmp_path / "published"
    assert [path.name for path in published.iterdir()] == ["nights"]
    assert "not published: min_mean_margin" in (published / f"nights/{DAY}/night.html").read_text("utf-8")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    file = write_night(tmp_path, tiny_model, "min_mean_margin = 0")
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "pointer", killed)
        assert run(capsys, file)[0] == 1
    status, summary = run(capsys, file)
    assert (status, set(statuses(summary).values())) == (0, {"skipped"})
    assert summary["published"]["latest"]
    before = {path: path.stat().st_mtime_ns for path in published.rglob("*") if path.is_file()}
    assert run(capsys, file)[1]["published"]["new"] is False
    assert {path: path.stat().st_mtime_ns for path in published.rglob("*") if path.is_file()} == before
    assert len(before) == 6  # two pointers; the record, the page, and the report with its numbers

    latest = json.loads((published / "LATEST.json").read_text())
    assert latest == json.loads((published / f"dates/{DAY}.json").read_text())
    assert latest["totals"] == {"candidates": 24, "scored": 24, "rejected": 0, "mine_rows": 12}
    for made in (latest["scores"][0], latest["datasets"]["mine"]):
        sizes = [(Path(made["uri"]) / part["path"]).stat().st_size for part in made["parts"]]
        assert sizes == [part["bytes"] for part in made["parts"]]
    assert verify_output(f"{tmp_path}/out/{DAY}")[1] == []
    page = (published / f"nights/{DAY}/night.html").read_text("utf-8")
    for link in (f"../../../out/{DAY}/README.md", f"../../../pairs/{DAY}/README.md", "report.html"):
        assert f'href="{link}"' in page
        assert (published / f"nights/{DAY}" / link).resolve().is_file()
