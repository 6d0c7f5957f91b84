"""`report --by`: the numbers of nights against plain Python over the rows, their limits, and their section."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from armo_ray.cli.main import main
from armo_ray.options import load_options
from armo_ray.outputs.database import database
from armo_ray.report.nights import by_night, compared
from armo_ray.report.options import ReportOptions
from armo_ray.report.read import open_committed
from armo_ray.storage import commits
from armo_ray.storage.parts import hive_values
from armo_ray.storage.records import Timing
from armo_ray.storage.store import Store
from tests.support.local import rows_as_written
from tests.support.paths import SAMPLE
from tests.support.synthetic_outputs import commit_again, score_synthetically

DAYS = [f"2026-11-{day:02}" for day in range(1, 10)]
MOVED = DAYS[7]
PRICE = 3.0


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine nights of 14 pairs, and four pairs of none; the scores of the eighth night are higher by 5."""
    folder = tmp_path_factory.mktemp("nights")
    lines = SAMPLE.read_text("utf-8").splitlines(keepends=True)
    for i, day in enumerate([*DAYS, "__HIVE_DEFAULT_PARTITION__"]):
        shard = folder / "in" / f"date={day}" / "shard.jsonl"
        shard.parent.mkdir(parents=True)
        shard.write_text("".join(lines[14 * i : 14 * i + 14]), "utf-8")
    output = score_synthetically(folder / "out", folder / "in")
    (part,) = (output / "scores" / f"date={MOVED}").iterdir()
    table = pq.read_table(part, partitioning=None)
    place = table.schema.get_field_index("score")
    higher = pa.array(table["score"].to_numpy() + np.float32(5))
    pq.write_table(table.set_column(place, table.schema.field(place), higher), part)
    store = Store(str(output))
    for i, record in enumerate(commits.read_commits(store)):
        ended = datetime.fromisoformat(str(record.committed_at)).timestamp()
        timing = Timing({"wait": 1.0, "pack": 2.0, "model": 30.0 + i}, ended - 40.0 - i, load_seconds=5.0)
        changed = replace(
            record,
            candidates=record.scored + i,
            rejected={"too_long": i},
            num_tokens=1000 + i,
            timing=timing,
        )
        store.write(f"{commits.COMMITS}/{record.unit}.json", changed.to_json())
    return commit_again(output)


@pytest.fixture(scope="module")
def place(output: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the report lies, beside the page of one night and another file."""
    place = tmp_path_factory.mktemp("report")
    for name in (f"report-{DAYS[0]}.html", f"report-{DAYS[1]}.json"):
        (place / name).touch()
    words = ["report", str(output), "--output", str(place), "--by", "date", "--price", str(PRICE)]
    assert main(words) == 0
    return place


@pytest.fixture(scope="module")
def nights(place: Path) -> list[dict[str, Any]]:
    found = json.loads((place / "report.json").read_bytes())["nights"]
    assert (found["by"], found["without"]) == ("date", 2 * (130 - 9 * 14))
    assert [night["night"] for night in found["nights"]] == DAYS
    nights: list[dict[str, Any]] = found["nights"]
    return nights


def test_a_night_is_told_as_its_rows_are(output: Path, nights: list[dict[str, Any]]) -> None:
    rows = defaultdict(list)
    for row in rows_as_written(output):
        rows[str(row["date"])].append(row)
    for night in nights:
        own = rows[night["night"]]
        scores = sorted(row["score"] for row in own)
        assert night["scored"] == len(own)
        values = {name: value["value"] for name, value in night["values"].items()}
        assert values["score"] == pytest.approx(mean(scores))
        assert values["num_response_tokens"] == pytest.approx(mean(row["num_response_tokens"] for row in own))
        for name in own[0]["rewards"]:
            assert values[f"rewards.{name}"] == pytest.approx(mean(row["rewards"][name] for row in own))
        for share, name in ((0.1, "p10"), (0.9, "p90")):
            assert abs(np.mean([score <= night[name] for score in scores]) - share) < 0.06


def test_rejects_speed_and_cost_of_a_night_are_those_of_its_records(
    output: Path, nights: list[dict[str, Any]]
) -> None:
    records = {
        dict(hive_values(record.source))["date"]: record
        for record in commits.read_commits(Store(str(output)))
    }
    for night in nights:
        record, values = records[night["night"]], night["values"]
        assert record.timing is not None
        rejected = sum(record.rejected.values())
        assert (night["candidates"], night["rejected"]) == (record.candidates, rejected)
        assert values["rejected_share"]["value"] == rejected / record.candidates
        took = datetime.fromisoformat(str(record.committed_at)).timestamp() - record.timing.began
        assert values["tokens_per_second"]["value"] == pytest.approx(record.num_tokens / took)
        paid = record.timing.replica_seconds + record.timing.load_seconds
        assert values["cost_usd"]["value"] == pytest.approx(paid / 3600 * PRICE)


def test_a_night_is_compared_with_the_seven_before(nights: list[dict[str, Any]]) -> None:
    for name in nights[0]["values"]:
        values = [night["values"][name]["value"] for night in nights]
        for i, night in enumerate(nights):
            before, found = values[max(0, i - 7) : i], night["values"][name]
            assert found["before"] == len(before)
            assert found["mean"] == (pytest.approx(mean(before)) if before else None)
            assert found["sd"] == (pytest.approx(stdev(before)) if len(before) > 1 else None)
            assert (found["outside"] is not None) == (len(before) >= 4 and is_unlikely(values[i], before))
    assert nights[7]["values"]["score"]["outside"] == "above"


def is_unlikely(value: float, before: Sequence[float]) -> bool:
    """Whether a normal distribution with the mean and deviation of a sample gives so far a value in 1 of 370 cases."""
    spread = stdev(before) * math.sqrt(1 + 1 / len(before))
    probability = 2 * stats.t.sf(abs(value - mean(before)) / spread, len(before) - 1)
    return bool(probability < 2 * stats.norm.sf(3))


@pytest.mark.parametrize("before", range(2, 8))
def test_chance_puts_three_values_in_a_thousand_outside_however_few_nights_are_before(before: int) -> None:
    values = np.random.default_rng(before).normal(5, 2, before).tolist()
    limits = compared([*values, 5.0])[-1].limits
    assert limits is not None
    spread = stdev(values) * math.sqrt(1 + 1 / before)
    for limit in limits:
        probability = stats.t.sf(abs(limit - mean(values)) / spread, before - 1)
        assert probability == pytest.approx(stats.norm.sf(3), rel=1e-3)


@pytest.mark.parametrize(
    ("values", "outside"),
    [
        ([0.1] * 9, []),
        ([0.0, 0.0, 0.0, 1.0], []),
        ([0.0, 0.0, 0.0, 0.0, 1.0], [4]),
        ([1.0, 2.0, 1.0, 2.0, None, -9.0], [5]),
        ([None, None, None, None, 1.0], []),
        ([9.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 9.0], [8]),  # the first is no longer of the week
        ([], []),
    ],
    ids=["equal", "too-few", "four", "gap", "unknown", "forgotten", "none"],
)
def test_what_is_far_from_four_nights_or_more_is_outside(
    values: Sequence[float | None], outside: list[int]
) -> None:
    assert [i for i, value in enumerate(compared(values)) if value.outside] == outside


def test_the_page_says_in_words_what_is_outside_and_links_pages_that_exist(place: Path) -> None:
    page = (place / "report.html").read_text("utf-8")
    section = page.split('<section id="nights"')[1].split("</section>")[0]
    assert re.findall(r'href="([^"]*)"', section) == [f"report-{DAYS[0]}.html"]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>\n<td class="words">(.*?)</td>', section)
    assert [re.sub("<.*?>", "", night) for night, _ in rows] == DAYS[::-1]
    assert rows[1][1].startswith("score above")
    assert section.count('<svg class="chart"') == 6 + 19
    assert "8 candidates are in no directory of date" in section
    assert f"The latest, {DAYS[-1]}, is " in section


def test_a_column_that_is_no_directory_is_refused_with_those_that_are(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(output), "--output", str(tmp_path), "--by", "role"]) == 2
    assert "by role: not a hive directory" in (told := capsys.readouterr().err)
    assert "the names are date" in told
    flat = score_synthetically(tmp_path / "flat", SAMPLE)
    assert main(["report", str(flat), "--by", "date"]) == 2
    assert "the output has none" in capsys.readouterr().err
    assert not (tmp_path / "report.json").exists()


def test_nights_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    lines = SAMPLE.read_text("utf-8").splitlines(keepends=True)
    for i, folder in enumerate(("hour=10", "hour=9", "hour=late")):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / "a.jsonl").write_text("".join(lines[i : i + 1 + i]), "utf-8")
    output = score_synthetically(tmp_path / "out", tmp_path / "in")
    options = load_options(ReportOptions, None, {"scores": str(output)})
    with database(options) as con:
        found = by_night(con, open_committed(options.scores), "hour", None).nights
    assert [(night.night, night.scored) for night in found] == [("9", 4), ("10", 2), ("late", 6)]
