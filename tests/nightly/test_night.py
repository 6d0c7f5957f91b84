"""A night without Ray: what its file may say, what is in its way, what it publishes and when it does not."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.nightly.night import Night, load_night
from armo_ray.nightly.options import NightlyOptions
from tests.support.growing_outputs import reveal, rows_in, units_of, write_shards
from tests.support.nights import DAY, run, statuses
from tests.support.paths import ROOT, SAMPLE
from tests.support.synthetic_outputs import score_synthetically, with_columns

pytest_plugins = ["tests.support.s3_server"]

SCORE = '[score]\ninput = "in"\noutput = "out/{date}"\nmodel = "m"\n'
GROWING = '[score]\ninput = "in/{date}"\noutput = "out"\nmodel = "m"\n'
MINE = '[mine]\noutput = "pairs/{date}"\n'
PUBLISH = '[publish]\nto = "published"\n'
Load = Callable[..., Night]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a night from the text of its file; in places, {} stands for nothing else than the date."""

    def of(text: str, **options: Any) -> Night:
        (tmp_path / "night.toml").write_text(text, "utf-8")
        return load_night(NightlyOptions(file=str(tmp_path / "night.toml"), **options))

    return of


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no step: expected sections"),
        (SCORE + "[mien]\n", r"\[mien\]: unknown section; did you mean \[mine\]\?"),
        ("keeep = 1\n" + SCORE, "keeep: not an option of any of the sections"),
        (SCORE + 'date = "2026-11-20"\n', r"\[score\] date: of the whole night"),
        (SCORE + MINE + "strategi = 1\n", r"\[mine\] strategi: unknown option; did you mean strategy\?"),
        (SCORE + MINE + 'scores = "other"\n', r"\[mine\] scores: .*/other is not what this night makes"),
        (SCORE + MINE + '[label]\noutput = "pairs/{date}"\n', "two steps write to .*/pairs/2026-11-20"),
        (SCORE + '[filter]\noutput = "f"\n', r"\[filter\] nothing to filter by"),
        (SCORE + "[gate]\nmin_pairs = 1\n", r"\[gate\] min_pairs: needs \[mine\]"),
        (SCORE + "[report]\n[gate]\nmax_psi = 0.1\n", r"\[gate\] max_psi: needs \[report\] with against"),
        (MINE + 'scores = "out"\n', r"publish: a night needs \[publish\]"),
        (SCORE + '[publish]\nto = "{day}"\n', r"unknown placeholder \{day\}"),
        (SCORE + '[mine]\noutput = "pairs"\nappend = true\n', r"\[mine\] scores: out/\{date\} changes every"),
        (
            "partition = 'date={date}'\n" + GROWING + '[label]\noutput = "labels"\nappend = true\n',
            r"\[label\] partition: date=\{date\} changes every night",
        ),
        (
            GROWING + '[filter]\noutput = "f"\nappend = true\nwhere = "day = \'{date}\'"\n',
            r"\[filter\] where: day = '\{date\}' changes every night",
        ),
        (
            "scores = 'o/{date}'\n" + PUBLISH.replace("[", "[mine]\noutput = 'p'\nappend = true\n[", 1),
            r"\[mine\] scores: o/\{date\} changes every night",
        ),
        (
            GROWING + "[mine]\noutput = 'p'\nappend = true\ndecontaminate = 'b/{date}.jsonl'\n",
            r"\[mine\] decontaminate: b/\{date\}.jsonl changes every night",
        ),
        (SCORE + MINE + "append = true\ntitle = '{date}'\n", r"\[mine\] title: unknown option"),
        ("partition = 5\n" + SCORE + MINE + "partition = []\n", "partition: expected text such as date="),
        ("partition = 'date'\n" + SCORE + MINE, r"\[mine\] partition date: expected NAME=VALUE"),
    ],
)
def test_a_wrong_file_is_refused_with_its_section(load: Load, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"config .*night.toml: .*{message}"):
        load(text, date=DAY)


def test_the_date_and_shared_options_reach_every_section_and_flags_override_the_file(load: Load) -> None:
    night = load(f'date = 2026-11-01\nmax_runtime = "2h"\nkeep = ["id"]\n{SCORE}{MINE}', date=DAY)
    score, mine = night.steps
    assert (night.date, night.max_runtime) == (DAY, 7200)
    assert score.writes == mine.reads
    assert score.writes[0].endswith("/out/2026-11-20")
    assert (score.options[0].keep, mine.options[0].keep) == ({"id": "id"}, ("id",))
    assert night.home == f"{score.writes[0]}/nights/{DAY}"


@pytest.mark.parametrize(
    "text",
    [
        GROWING + "[mine]\noutput = 'p'\nappend = true\nspill = '/scratch/{date}'\n",
        SCORE + "[mine]\noutput = 'p/{date}'\nappend = true\n",
        "partition = 'date={date}'\n"
        + GROWING
        + "[filter]\noutput = 'f'\nappend = true\nwhere = 'score > 0'\n",
        "partition = 'date={date}'\n" + GROWING + "[mine]\noutput = 'p'\nappend = 'false'\n",
    ],
)
def test_a_dataset_that_grows_may_work_in_another_place_every_night(load: Load, text: str) -> None:
    assert load(text, date=DAY).date == DAY


def test_the_command_line_says_what_the_cluster_has(load: Load) -> None:
    (step,) = load(SCORE + 'replicas = "2"\n', replicas="1:7", gpus_per_replica="1").steps
    assert (step.options[0].replicas, step.options[0].gpus_per_replica) == ((1, 7), 1.0)
    with pytest.raises(ConfigError, match=r"--replicas: there is no \[score\] to use it"):
        load(MINE + 'scores = "out"\n', replicas="1:7")
    with pytest.raises(ConfigError, match=r"\[score\] replicas"):
        load(SCORE, replicas="many")


def test_filter_comes_before_the_step_that_reads_its_output(load: Load) -> None:
    filtered = '[filter]\nwhere = "score > 0"\noutput = "kept/{date}"\n'
    assert [s.name for s in load(SCORE + MINE + filtered).steps] == ["score", "mine", "filter"]
    night = load(SCORE + MINE + 'scores = "kept/{date}"\n' + filtered)
    assert [s.name for s in night.steps] == ["score", "filter", "mine"]
    with pytest.raises(ConfigError, match=r"\[mine\] scores: the output of \[filter\] is jsonl"):
        load(SCORE + MINE + 'scores = "kept/{date}"\n' + filtered + 'format = "jsonl"\n')


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[report]\nagainst = 'older'\n", r"\[report\] .*/older: no output there, or none that is complete"),
        ("[mine]\noutput = 'p'\nexclude = 'older'\n", r"\[mine\] exclude: .*/older: no _SUCCESS"),
        ("[mine]\noutput = 'p'\ndecontaminate = 'b.jsonl'\n", r"\[mine\] input .*b.jsonl: no .parquet"),
        (
            "[label]\noutput = 'l'\nscores = 'older'\n",
            r"\[label\] .*/older: no output there, or none that is complete",
        ),
    ],
)
def test_what_a_night_reads_besides_its_own_is_there_before_any_work(
    more: str,
    message: str,
    scored: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "night.toml"
    file.write_text(f"scores = '{scored}'\n[filter]\nwhere = 'score > 0'\noutput = 'kept'\n{more}{PUBLISH}")
    assert main(["nightly", str(file), "--date", DAY]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "kept").exists()


def test_the_example_of_a_night_is_one() -> None:
    night = load_night(NightlyOptions(file=str(ROOT / "jobs/night.toml"), date=DAY))
    assert [step.name for step in night.steps] == ["score", "mine", "report"]
    assert night.home == f"s3://data/published/nights/{DAY}"


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """Scores of pairs of a night that has no [score] of its own."""
    return score_synthetically(tmp_path / "scored", SAMPLE, keep_text=True)


def mined_night(folder: Path, scores: Path, to: str, more: str = "") -> Path:
    file = folder / "mined.toml"
    file.write_text(
        f'[mine]\nscores = "{scores}"\noutput = "{folder}/pairs/{{date}}"\n{more}[publish]\nto = "{to}"\n'
    )
    return file


def test_an_older_night_does_not_take_the_place_of_the_latest(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = mined_night(tmp_path, scored, f"{tmp_path}/published")
    latest = tmp_path / "published/LATEST.json"
    older = "2026-11-19"
    assert main(["nightly", str(file), "--date", DAY]) == 0
    assert main(["nightly", str(file), "--date", older]) == 0
    assert (tmp_path / f"published/dates/{older}.json").exists()
    assert json.loads(latest.read_text())["date"] == DAY
    assert main(["nightly", str(file), "--date", older, "--force-latest"]) == 0
    assert json.loads(latest.read_text())["date"] == older


def test_a_night_is_published_in_a_bucket(
    s3: str, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from armo_ray.storage.store import Store

    file = mined_night(tmp_path, scored, f"{s3}/published")
    assert run(capsys, file)[1]["published"]["pointer"] == f"{s3}/published/dates/{DAY}.json"
    store = Store(f"{s3}/published")
    assert store.read_json("LATEST.json") == store.read_json(f"dates/{DAY}.json")
    assert b"Published" in store.read(f"nights/{DAY}/night.html")
    assert statuses(run(capsys, file)[1]) == {"mine": "skipped"}


def test_a_dataset_that_is_in_the_way_is_told_before_any_work(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = mined_night(tmp_path, scored, f"{tmp_path}/published")
    assert run(capsys, file)[0] == 0
    shutil.rmtree(tmp_path / "published")
    assert main(["nightly", str(file), "--date", DAY]) == 2
    assert "holds a dataset that this night did not make" in capsys.readouterr().err
    assert not (tmp_path / "published").exists()


def test_a_dataset_of_other_options_or_scores_is_not_taken_for_this_nights(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, mined_night(tmp_path, scored, f"{tmp_path}/published"))[0] == 0
    changed = mined_night(tmp_path, scored, f"{tmp_path}/published", "min_margin = ['score=0.01']\n")
    assert run(capsys, changed)[0] == 2
    same = mined_night(tmp_path, scored, f"{tmp_path}/published", "threads = 1\n")
    assert statuses(run(capsys, same)[1]) == {"mine": "skipped"}


def test_nights_of_one_growing_output_read_their_own_directories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = SAMPLE.read_text("utf-8").splitlines(keepends=True)
    text = f"partition = 'date={{date}}'\n[report]\npartition = 'date={{date}}'\nscores = '{tmp_path}/out'\n"
    for i, day in enumerate((DAY, "2026-11-21")):
        shard = tmp_path / f"in/date={day}/a.jsonl"
        shard.parent.mkdir(parents=True)
        shard.write_text("".join(lines[10 * i : 10 * i + 10]), "utf-8")
        score_synthetically(tmp_path / "out", tmp_path / "in", keep_text=True)
        file = mined_night(tmp_path, tmp_path / "out", f"{tmp_path}/published", text)
        assert main(["nightly", str(file), "--date", day]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"]["mine"]["rows"] == 10
        assert (tmp_path / f"published/nights/{day}/report-{day}.html").exists()
    summary = run(capsys, file)[1]  # the first again: its directories are as they were
    assert statuses(summary) == {"mine": "skipped", "report": "skipped"}


def test_what_the_latest_pointer_lists_stays_until_the_next_but_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()][:12]
    shards = write_shards(tmp_path / "in", rows, 5)  # most prompts recur, so every night replaces parts
    whole = score_synthetically(tmp_path / "whole", shards, keep_text=True)
    (tmp_path / "night.toml").write_text(
        f'[mine]\nscores = "{tmp_path}/scores"\noutput = "{tmp_path}/pairs"\nappend = true\n'
        f'[publish]\nto = "{tmp_path}/published"\n'
    )

    def night(day: int, more: str = "") -> tuple[int, set[str]]:
        """Another shard is scored, and a night made; its status, and the parts of pairs that LATEST.json lists."""
        reveal(whole, tmp_path / "scores", units_of(whole)[:day])
        file = tmp_path / f"{day}.toml"
        file.write_text((tmp_path / "night.toml").read_text() + more)
        status = main(["nightly", str(file), "--date", f"2026-11-0{day}"])
        latest = json.loads((tmp_path / "published/LATEST.json").read_text())
        return status, {part["path"] for part in latest["datasets"]["mine"]["parts"]}

    def there() -> set[str]:
        return {str(path.relative_to(tmp_path / "pairs")) for path in tmp_path.glob("pairs/data/*/*")}

    assert night(1) == (0, there())
    _, first = night(1)
    assert night(2, "[gate]\nmin_pairs = 1000\n") == (4, first)
    assert first < there()
    status, third = night(3)
    assert status == 0
    assert first | third == there()
    assert not first <= third
    status, fourth = night(4)
    assert status == 0
    assert first | third | fourth == there()
    status, fifth = night(5)
    assert status == 0
    assert third | fourth | fifth == there()
    assert not first <= there()
    assert rows_in(tmp_path / "pairs")  # the card and manifest list these parts and no others
    splits = datasets.load_dataset(str(tmp_path / "pairs"), cache_dir=str(tmp_path / "cache"))
    assert len(splits["train"]) == sum(
        pq.read_metadata(tmp_path / "pairs" / path).num_rows for path in fifth if "/train/" in path
    )


def test_two_places_that_publish_one_dataset_keep_the_parts_of_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()][:12]
    whole = score_synthetically(tmp_path / "whole", write_shards(tmp_path / "in", rows, 5), keep_text=True)
    for day, place in enumerate(("a", "b", "b", "b", "b"), 1):
        reveal(whole, tmp_path / "scores", units_of(whole)[:day])
        (tmp_path / "night.toml").write_text(
            f'[mine]\nscores = "{tmp_path}/scores"\noutput = "{tmp_path}/pairs"\nappend = true\n'
            f'[publish]\nto = "{tmp_path}/{place}"\n'
        )
        assert main(["nightly", str(tmp_path / "night.toml"), "--date", f"2026-11-0{day}"]) == 0
        for published in tmp_path.glob("?/LATEST.json"):
            for part in json.loads(published.read_text())["datasets"]["mine"]["parts"]:
                assert (tmp_path / "pairs" / part["path"]).exists()


def test_a_night_stops_at_its_limit_and_goes_on(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = mined_night(tmp_path, scored, f"{tmp_path}/published")
    status, summary = run(capsys, file, "--max-runtime", "0.001")
    assert (status, summary["published"]) == (5, None)
    assert run(capsys, file)[0] == 0


def test_drift_keeps_a_night_from_being_published(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = with_columns(scored, tmp_path / "older", score=9.0)
    report = f'[report]\nscores = "{scored}"\nagainst = "{older}"\n[gate]\nmax_psi = 1e-9\n'
    status, summary = run(capsys, mined_night(tmp_path, scored, f"{tmp_path}/published", report))
    (psi,) = (condition for condition in summary["gate"] if condition["name"] == "max_psi")
    assert (status, psi["passed"], summary["published"]) == (4, False, None)
    assert psi["of"] == "score, against what chance gives"
    assert psi["value"] > psi["limit"] > 0.1  # what chance gives with so few prompts
    assert not (tmp_path / "published/LATEST.json").exists()
