"""What counts as made by a night: its own increments, its own days, and nothing that has changed or is damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.cli.main import main
from armo_ray.nightly import publish as publishing
from armo_ray.outputs.scores import open_scores
from tests.support.growing_outputs import reveal, units_of, write_shards
from tests.support.local import rows_of, score_locally
from tests.support.nights import DAY, run, statuses
from tests.support.paths import SAMPLE
from tests.support.synthetic_outputs import score_synthetically, with_columns

pytest_plugins = ["tests.support.s3_server"]

ROWS = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()]
BEFORE = "2026-11-19"
Night = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def night(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Night:
    """Runs a night of these sections on a day; returns its status and its last line."""

    def of(text: str, day: str = DAY, to: str = "") -> tuple[int, dict[str, Any]]:
        file = tmp_path / "night.toml"
        file.write_text(f'{text}\n[publish]\nto = "{to or tmp_path / "published"}"\n', "utf-8")
        return run(capsys, file, "--date", day)

    return of


@pytest.fixture
def growing(tmp_path: Path) -> tuple[Path, Path]:
    """Scores of five shards in which most prompts recur, and a place to reveal them one after the other."""
    shards = write_shards(tmp_path / "in", ROWS[:40], 5)
    return score_synthetically(tmp_path / "whole", shards, keep_text=True), tmp_path / "scores"


def grown(folder: Path, scores: Path, section: str = "mine", gate: str = "", output: str = "made") -> str:
    strategy = 'strategy = "all-above-margin"\n' if section == "mine" else "temperature = 1\n"
    return f'[{section}]\nscores = "{scores}"\noutput = "{folder}/{output}"\nappend = true\n{strategy}[gate]\n{gate}'


def last_shards(whole: Path, shards: int) -> dict[str, int]:
    """By prompt, the last of the first shards that has candidates of it."""
    names = sorted({row["source"] for row in rows_of(whole)})[:shards]
    return {row["prompt_id"]: names.index(row["source"]) for row in rows_of(whole) if row["source"] in names}


@pytest.mark.parametrize("section", ["mine", "label"])
def test_the_rows_of_a_night_are_those_that_its_increments_made_and_no_later_one_replaced(
    section: str, growing: tuple[Path, Path], night: Night, tmp_path: Path
) -> None:
    whole, scores = growing
    days = {1: BEFORE, 2: BEFORE, 3: DAY, 5: "2026-11-21"}
    for shards, day in days.items():
        reveal(whole, scores, units_of(whole)[:shards])
        night(grown(tmp_path, scores, section), day)
    made = [row for path in (tmp_path / "made/data").rglob("*.parquet") for row in listed(tmp_path, path)]
    last = last_shards(whole, 5)
    for day, first, end in ((BEFORE, 0, 2), (DAY, 2, 3), ("2026-11-21", 3, 5)):
        status, summary = night(grown(tmp_path, scores, section), day)
        expected = [row for row in made if first <= last[row["prompt_id"]] < end]
        assert (status, summary["steps"][section]["status"]) == (0, "skipped")
        assert summary["steps"][section]["rows"] == len(expected) > 0


def listed(folder: Path, path: Path) -> list[dict[str, Any]]:
    """The rows of a part, if the dataset still consists of it."""
    parts = json.loads((folder / "made/_SUCCESS").read_text())["parts"]
    is_listed = str(path.relative_to(folder / "made")) in {part["path"] for part in parts}
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist() if is_listed else []
    return rows


def test_no_night_passes_its_gate_with_pairs_of_another(
    growing: tuple[Path, Path], night: Night, tmp_path: Path
) -> None:
    whole, scores = growing
    rows = {}
    for shards, day in {2: BEFORE, 3: DAY}.items():
        reveal(whole, scores, units_of(whole)[:shards])
        status, summary = night(
            grown(tmp_path, scores, gate="min_pairs = 100000\nmin_mean_margin = 0.0\n"), day
        )
        rows[day] = summary["steps"]["mine"]["rows"]
        assert (status, summary["gate"][0]["value"]) == (4, rows[day])
    status, summary = night(grown(tmp_path, scores, gate=f"min_pairs = {rows[BEFORE] + 1}\n"), BEFORE)
    assert status == 4  # the pairs of DAY are not its own
    shutil.rmtree(tmp_path / "made")
    for output in ("made", "other"):  # made anew, all pairs are this night's
        status, summary = night(
            grown(tmp_path, scores, gate=f"min_pairs = {rows[DAY] + 1}\n", output=output), DAY
        )
        assert (status, summary["gate"][0]["passed"]) == (0, True)


def test_a_published_night_stays_so_though_a_later_one_replaced_its_pairs(
    growing: tuple[Path, Path], night: Night, tmp_path: Path
) -> None:
    whole, scores = growing
    reveal(whole, scores, units_of(whole)[:2])
    status, summary = night(grown(tmp_path, scores), BEFORE)
    rows = summary["steps"]["mine"]["rows"]
    text = grown(tmp_path, scores, gate=f"min_pairs = {rows}\n")
    assert (status, night(text, BEFORE)[0]) == (0, 0)
    pointer = tmp_path / f"published/dates/{BEFORE}.json"
    before = pointer.read_bytes()
    reveal(whole, scores, units_of(whole))
    assert night(grown(tmp_path, scores), DAY)[0] == 0
    status, summary = night(text, BEFORE)
    assert (status, summary["published"]["new"], summary["published"]["latest"]) == (0, False, False)
    assert summary["steps"]["mine"]["rows"] < rows
    assert pointer.read_bytes() == before
    shutil.rmtree(tmp_path / "published/dates")
    assert night(text, BEFORE)[0] == 4


@pytest.mark.parametrize(("section", "stop"), [("mine", "gate"), ("mine", "killed"), ("label", "killed")])
def test_what_was_added_to_a_published_night_is_judged_until_it_is_published_too(
    section: str,
    stop: str,
    growing: tuple[Path, Path],
    night: Night,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, scores = growing
    text, latest = grown(tmp_path, scores, section), tmp_path / "published/LATEST.json"
    reveal(whole, scores, units_of(whole)[:2])
    assert night(text)[0] == 0
    before = latest.read_bytes()
    reveal(whole, scores, units_of(whole))
    if stop == "gate":
        assert [night(f"{text}min_pairs = 100000\n")[0] for _ in range(2)] == [4, 4]
    else:
        with monkeypatch.context() as patch:
            patch.setattr(publishing, "pointer", killed)
            assert [night(text)[0] for _ in range(2)] == [1, 1]
    assert latest.read_bytes() == before
    status, summary = night(text)
    assert (status, summary["published"]["new"]) == (0, True)
    rows = [json.loads(content)["datasets"][section]["rows"] for content in (before, latest.read_bytes())]
    assert rows[0] < rows[1] == summary["steps"][section]["rows"]
    assert night(text)[1]["published"]["new"] is False


def killed(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_published_night_whose_scores_or_place_changed_is_published_anew(
    night: Night, tiny_model: Path, tmp_path: Path
) -> None:
    section = scored_days(tmp_path, tiny_model, {DAY: ROWS[:4]}, "jsonl")

    def text(output: str) -> str:
        return f'{section}[mine]\noutput = "{tmp_path}/{output}"\nappend = true\n'

    for output, is_new in (("a", True), ("a", False), ("b", True), ("a", True), ("a", False)):
        status, summary = night(text(output))
        assert (status, summary["published"]["new"]) == (0, is_new)
        latest = json.loads((tmp_path / "published/LATEST.json").read_text())
        assert latest["datasets"]["mine"]["uri"] == str(tmp_path / output)
    late = tmp_path / f"in/date={DAY}/late.jsonl"
    late.write_text("".join(json.dumps(row) + "\n" for row in ROWS[4:6]), "utf-8")
    score_locally(tiny_model, tmp_path / "in", tmp_path / "out", keep_text=True)
    status, summary = night(text("a"))
    assert (status, summary["published"]["new"]) == (0, True)
    latest = json.loads((tmp_path / "published/LATEST.json").read_text())
    assert (latest["totals"]["scored"], latest["datasets"]["mine"]["rows"]) == (12, 6)


@pytest.mark.parametrize("changes", ["exclude", "decontaminate"])
def test_a_night_of_an_earlier_version_is_known(changes: str, night: Night, tmp_path: Path) -> None:
    scores = score_synthetically(tmp_path / "scored", SAMPLE, keep_text=True)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]), "utf-8")
    place = few if changes == "decontaminate" else score_synthetically(tmp_path / "few", few)
    text = f'[mine]\nscores = "{scores}"\noutput = "{tmp_path}/pairs/{{date}}"\n{changes} = "{place}"\n'
    assert night(text)[0] == 0
    record = tmp_path / f"published/nights/{DAY}/progress.json"
    content = json.loads(record.read_text())
    del content["steps"]["mine"]["exclusions"]
    record.write_text(json.dumps(content))
    assert statuses(night(text)[1]) == {"mine": "skipped"}


def test_a_damaged_part_of_a_dataset_that_grows_is_not_to_be_deleted_with_all_others(
    growing: tuple[Path, Path], night: Night, tmp_path: Path
) -> None:
    whole, scores = growing
    for shards, day in {2: BEFORE, 5: DAY}.items():
        reveal(whole, scores, units_of(whole)[:shards])
        status, summary = night(
            grown(tmp_path, scores, gate="min_pairs = 1000000\n" if day == DAY else ""), day
        )
    part = next(path for path in (tmp_path / "made/data").rglob("part-00002-*"))
    part.unlink()
    status, summary = night(grown(tmp_path, scores))
    assert (status, summary["published"]) == (1, None)
    assert f"{part.name} is missing" in summary["meaning"]
    assert summary["meaning"].endswith("restore it, or make the dataset anew, in another output of [mine]")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("changes", ["exclude", "decontaminate"])
def test_pairs_are_not_taken_for_this_nights_if_what_they_leave_out_has_changed(
    changes: str, kind: str, night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = score_synthetically(tmp_path / "scored", SAMPLE, keep_text=True)
    other, bench = tmp_path / "other", tmp_path / f"bench.{kind}"

    def write(count: int) -> None:
        """As many prompts are to be left out."""
        some = [{"question": row["prompt"]} for row in ROWS[:count]]
        if kind == "jsonl":
            bench.write_text("".join(json.dumps(row) + "\n" for row in some))
        else:
            pq.write_table(pa.Table.from_pylist(some), bench)
        shutil.rmtree(other, ignore_errors=True)
        shutil.rmtree(tmp_path / "few", ignore_errors=True)
        (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:count]))
        score_synthetically(tmp_path / "few", tmp_path / "few.jsonl", keep_text=True)
        assert main(["mine", str(tmp_path / "few"), "--output", str(other), "--format", kind]) == 0

    place = {"exclude": other, "decontaminate": bench}[changes]
    text = f'[mine]\nscores = "{scores}"\noutput = "{tmp_path}/pairs/{{date}}"\n{changes} = "{place}"\nngram = 5\n'
    write(3)
    status, summary = night(text)
    assert (status, summary["steps"]["mine"]["rows"] < len(ROWS)) == (0, True)
    assert statuses(night(text)[1]) == {"mine": "skipped"}
    write(5)
    status, summary = night(text)
    assert (status, "datasets that have changed since" in summary["meaning"]) == (2, True)


@pytest.mark.parametrize("place", ["disk", "s3"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_night_with_a_damaged_part_is_not_published(
    damage: str, place: str, night: Night, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from armo_ray.storage.store import Store

    folder = request.getfixturevalue("s3") if place == "s3" else str(tmp_path)
    scores = score_synthetically(tmp_path / "scored", SAMPLE, keep_text=True)
    text = f'[mine]\nscores = "{scores}"\noutput = "{folder}/pairs/{{date}}"\n'
    assert night(text, to=f"{folder}/published")[0] == 0
    store = Store(f"{folder}/pairs/{DAY}")
    (name,) = [path.removeprefix(f"{store.root}/") for path in store.find("data/train")]
    content = store.read(name)
    Store(f"{folder}/published").delete("LATEST.json")
    store.delete(name)
    if damage == "cut":
        store.write(name, content[:-5])
    status, summary = night(text, to=f"{folder}/published")
    told = "is missing" if damage == "missing" else f"has {len(content) - 5} bytes"
    assert (status, summary["published"]) == (1, None)
    assert f"{name} {told}; it was written with {len(content)} bytes" in summary["meaning"]
    assert Store(f"{folder}/published").read_json("LATEST.json") is None


EMPTY = {"prompt": "Why?", "responses": []}  # a row that is rejected


def scored_days(tmp_path: Path, model: Path, days: dict[str, list[Any]], kind: str, **options: Any) -> str:
    """Score a shard a day; returns the [score] section that finds its work done."""
    for day, rows in days.items():
        shard = tmp_path / f"in/date={day}/a.{kind}"
        shard.parent.mkdir(parents=True)
        if kind == "jsonl":
            shard.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        else:
            pq.write_table(pa.Table.from_pylist(rows), shard)
    score_locally(model, tmp_path / "in", tmp_path / "out", keep_text=True, **options)
    return (
        f'[score]\ninput = "{tmp_path}/in/date={{date}}/"\noutput = "{tmp_path}/out"\nmodel = "{model}"\n'
        f'dtype = "float32"\nkeep_text = true\ndays = {len(days)}\nmax_reject_fraction = 1\n'
    )


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_the_gate_of_a_partition_counts_the_rejects_of_that_day_alone(
    kind: str, night: Night, tiny_model: Path, tmp_path: Path
) -> None:
    sound = [{"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]]} for row in ROWS[:10]]
    section = scored_days(tmp_path, tiny_model, {BEFORE: sound, DAY: [*sound[:3], EMPTY, EMPTY]}, kind)
    text = f"partition = 'date={{date}}'\n{section}[mine]\noutput = '{tmp_path}/pairs/{{date}}'\n"
    text += "[gate]\nmax_reject_fraction = 0.1\n"
    status, summary = night(text, DAY)
    (gate,) = summary["gate"]
    assert (status, gate["value"], gate["of"]) == (
        4,
        2 / 8,
        f"candidates of the input, in {tmp_path}/out date={DAY}",
    )
    (tmp_path / "in" / f"date={DAY}").rename(tmp_path / "elsewhere")  # the day before reads one day alone
    status, summary = night(text.replace("days = 2", "days = 1"), BEFORE)
    assert (status, summary["gate"][0]["value"]) == (0, 0.0)
    latest = json.loads((tmp_path / "published/LATEST.json").read_text())
    assert latest["totals"] == {"candidates": 20, "scored": 20, "rejected": 0, "mine_rows": 10}


def test_shards_of_rejects_alone_count_in_every_partition_of_a_column(
    night: Night, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for topic, some in {"a": ROWS[:4], "b": ROWS[4:8]}.items():
        rows = [{"prompt": row["prompt"], "response": row["chosen"], "topic": topic} for row in some]
        (tmp_path / f"in/{topic}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (tmp_path / "in/c.jsonl").write_text("no JSON\n" * 4, "utf-8")
    score_locally(tiny_model, tmp_path / "in", tmp_path / "out", keep_text=True, partition_by="topic")
    status, summary = night(
        f'partition = "topic=a"\n[score]\ninput = "{tmp_path}/in"\noutput = "{tmp_path}/out"\nmodel = "{tiny_model}"\n'
        f'dtype = "float32"\nkeep_text = true\npartition_by = "topic"\nmax_reject_fraction = 1\n'
        f'[label]\noutput = "{tmp_path}/labels/{{date}}"\n'
    )
    assert (status, summary["gate"][0]["value"]) == (0, 4 / 8)
    assert summary["steps"]["label"]["rows"] == 4


@pytest.mark.parametrize("partition", ["", "partition = 'date={date}'\n"])
def test_a_day_of_rejects_alone_has_a_report_and_is_not_published(
    partition: str, night: Night, tiny_model: Path, tmp_path: Path
) -> None:
    section = scored_days(tmp_path, tiny_model, {DAY: [EMPTY, EMPTY]}, "jsonl")
    text = f"{partition}{section}[filter]\nwhere = 'score > 0'\noutput = '{tmp_path}/kept/{{date}}'\n"
    text += (
        f"[mine]\nscores = '{tmp_path}/kept/{{date}}'\npartition = []\noutput = '{tmp_path}/pairs/{{date}}'\n"
    )
    text += "[report]\n"
    status, summary = night(text)
    assert statuses(summary)["filter"] == statuses(summary)["mine"] == "empty"
    failed = [c["of"] for c in summary["gate"] if not c["passed"]]
    empty = (
        ["filter", "mine"] if not partition else ["filter", "mine", "report"]
    )  # in a partition no reject is
    assert (status, failed) == (4, [f"what [{name}] reads" for name in empty])
    assert night(text)[0] == 4
    published = tmp_path / "published"
    assert "what [mine] reads" in (published / f"nights/{DAY}/night.html").read_text("utf-8")
    assert (published / f"nights/{DAY}/report.html").exists() == (not partition)
    assert [path.name for path in published.iterdir()] == ["nights"]


def test_a_filter_that_grows_and_has_kept_nothing_yet_leaves_the_night_unpublished_but_not_failed(
    night: Night, tiny_model: Path, tmp_path: Path
) -> None:
    section = scored_days(tmp_path, tiny_model, {DAY: ROWS[:4]}, "jsonl")

    def text(least: float) -> str:
        kept = f"{tmp_path}/kept{least}"
        return (
            f"{section}[filter]\nwhere = 'score > {least}'\noutput = '{kept}'\nappend = true\n"
            f"[mine]\nscores = '{kept}'\noutput = '{tmp_path}/pairs{least}'\nappend = true\n"
        )

    assert night(text(1e9))[0] == 4
    status, summary = night(text(-1e9), to=str(tmp_path / "elsewhere"))
    assert (status, summary["steps"]["filter"]["rows"]) == (0, 8)
    status, summary = night(text(-1e9), to=str(tmp_path / "elsewhere"))
    assert (summary["steps"]["filter"], summary["steps"]["mine"]["rows"]) == (
        {"status": "skipped", "seconds": summary["steps"]["filter"]["seconds"], "rows": 8},
        4,
    )
    assert open_scores([str(tmp_path / "kept-1000000000.0")]).rows == 8


def test_a_night_of_a_report_alone_is_judged_every_time(night: Night, tmp_path: Path) -> None:
    scores = score_synthetically(tmp_path / "scored", SAMPLE)
    older = with_columns(scores, tmp_path / "older", score=9.0)
    text = f'[report]\nscores = "{scores}"\nagainst = "{older}"\n[gate]\nmax_ks = 1\nmax_psi = '
    assert [night(f"{text}{limit}\n")[0] for limit in ("1e9", "1e-9", "1e9")] == [0, 4, 0]
